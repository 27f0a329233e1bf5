"""Configuration: what is accepted, what is refused and how, and that no secret is ever shown."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from buckethead.config import (
    DEFAULT_DIRECTORY,
    MASK,
    BucketConfig,
    BucketHeadSettings,
    BucketSettings,
    ProfilingConfig,
    SnapshotConfig,
    masked,
    resolved_bucket,
)
from buckethead.errors import ConfigError

SECRET = "hush-hush-hush"
MIB = 1024 * 1024

NEWER = {
    "BUCKETHEAD_BUCKET__NAME": "new",
    "BUCKETHEAD_BUCKET__ACCESS_KEY_ID": "new-id",
    "BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY": "new-secret",
    "BUCKETHEAD_BUCKET__ENDPOINT_URL": "https://new.example",
    "BUCKETHEAD_BUCKET__REGION": "eu-west-1",
    "BUCKETHEAD_SNAPSHOT__KEY": "new.db",
    "BUCKETHEAD_SNAPSHOT__BRANCH": "main",
}
OLDER = {
    "R2_ENDPOINT_URL": "https://old.example",
    "R2_BUCKET": "old",
    "R2_ACCESS_KEY_ID": "old-id",
    "R2_SECRET_ACCESS_KEY": "old-secret",
    "BUCKETHEAD_KEY": "old.db",
    "BUCKETHEAD_BRANCH": "main",
}

SetEnv = Callable[[dict[str, str]], None]
WriteToml = Callable[[str], Path]


def configured_bucket() -> BucketConfig | None:
    """What the environment and the TOML file name; None for the default directory."""
    config = resolved_bucket({})
    return None if config.bucket == DEFAULT_DIRECTORY else config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and no setting of the person who runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(("BUCKETHEAD_", "R2_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def set_env(monkeypatch: pytest.MonkeyPatch) -> SetEnv:
    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def write_toml(home: Path) -> WriteToml:
    def write(text: str) -> Path:
        path = home / ".config" / "buckethead" / "config.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def secrets_of(config: BucketConfig) -> tuple[str | None, str | None]:
    def plain(secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()

    return plain(config.access_key_id), plain(config.secret_access_key)


class TestBucketConfig:
    def test_defaults(self) -> None:
        assert BucketConfig(bucket="b").model_dump() == {
            "bucket": "b",
            "key": "bucketsqlite/snap.db",
            "endpoint_url": None,
            "region": "auto",
            "access_key_id": None,
            "secret_access_key": None,
            "session_token": None,
            "addressing_style": "auto",
            "connect_timeout": 10.0,
            "read_timeout": 60.0,
            "extra_put_args": {},
            "part_size": 8 * MIB,
            "concurrency": 4,
            "files_prefix": "files/",
            "initial_branch": "main",
            "fencing": "require",
        }

    def test_is_frozen(self) -> None:
        config = BucketConfig(bucket="b")
        with pytest.raises(ValidationError, match="frozen"):
            config.key = "other"

    def test_bucket_is_required(self) -> None:
        with pytest.raises(ValidationError, match="bucket"):
            BucketConfig.model_validate({})

    @pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "a\x00"])
    def test_bad_bucket_names(self, name: str) -> None:
        with pytest.raises(ValidationError, match="bucket name"):
            BucketConfig(bucket=name)

    @pytest.mark.parametrize("key", ["k", "a b/c", "ünï/☃.db", "k" * 900, "é" * 450])
    def test_good_keys(self, key: str) -> None:
        assert BucketConfig(bucket="b", key=key).key == key

    @pytest.mark.parametrize("key", ["", "/k", "k" * 901, "é" * 451, "\ud800"])
    def test_bad_keys(self, key: str) -> None:
        with pytest.raises(ValidationError, match="key"):
            BucketConfig(bucket="b", key=key)

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:9000",
            "https://abc.r2.cloudflarestorage.com",
            "HTTPS://[::1]:9000/storage/v1/s3",
            "file:///srv/data",
            "file:///home/me/My Data",
            "file:///srv/a@b",
        ],
    )
    def test_good_endpoints(self, url: str) -> None:
        assert BucketConfig(bucket="b", endpoint_url=url).endpoint_url == url

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.com",
            "ftp://example.com",
            "s3://bucket",
            "file://relative",
            "file:relative",
            "http://",
            "http://:9000",
            "http://host:0",
            "http://host:99999",
            "http://[::1",
            "https://a b",
            " https://host",
            "https://host\n",
            "file:///a\x00b",
            f"https://host:{SECRET}",
            f"https://user:{SECRET}@host",
            f"https://user:1/{SECRET}@host",
            f"https://{SECRET}@host",
            f"https://host/?secret={SECRET}",
            f"https://host/#{SECRET}",
            f"file:///dir?secret={SECRET}",
            f"file://user:{SECRET}@host/dir",
            f"https://{SECRET}\u2100",
        ],
    )
    def test_bad_endpoints_are_refused_with_the_remedy_and_not_repeated(self, url: str) -> None:
        with pytest.raises(ValidationError, match="file:///ABSOLUTE") as caught:
            BucketConfig(bucket="b", endpoint_url=url)
        assert SECRET not in f"{caught.value} {caught.value!r}"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("part_size", 5 * MIB - 65536),
            ("part_size", 8 * MIB + 4096),
            ("part_size", 5 * 1024 * MIB + 65536),
            ("concurrency", 0),
            ("concurrency", 65),
            ("connect_timeout", 0),
            ("connect_timeout", float("nan")),
            ("read_timeout", -1),
            ("read_timeout", float("inf")),
            ("addressing_style", "magic"),
            ("region", ""),
            ("access_key_id", ""),
            ("fencing", "perhaps"),
            ("extra_put_args", {"ACL": 1}),
        ],
    )
    def test_out_of_range(self, field: str, value: object) -> None:
        with pytest.raises(ValidationError, match=field):
            BucketConfig.model_validate({"bucket": "b", field: value})

    @pytest.mark.parametrize("size", [5 * MIB, 8 * MIB + 65536, 5 * 1024 * MIB])
    def test_part_size_holds_whole_pages_of_every_size(self, size: int) -> None:
        config = BucketConfig(bucket="b", part_size=size)
        assert all(config.part_size % (512 << shift) == 0 for shift in range(8))

    @pytest.mark.parametrize("field", ["bukcet"])
    def test_options_without_effect_are_refused(self, field: str) -> None:
        with pytest.raises(ValidationError, match=rf"{field}\n.*not permitted"):
            BucketConfig.model_validate({"bucket": "b", field: "x"})

    @pytest.mark.parametrize("half", ["access_key_id", "secret_access_key"])
    def test_half_a_key_pair(self, half: str) -> None:
        with pytest.raises(ValidationError, match="set both or neither") as caught:
            BucketConfig.model_validate({"bucket": "b", half: SECRET})
        assert SECRET not in f"{caught.value} {caught.value!r}"

    def test_a_session_token_needs_the_pair(self) -> None:
        with pytest.raises(ValidationError, match="session_token needs"):
            BucketConfig.model_validate({"bucket": "b", "session_token": SECRET})

    def test_secrets_may_be_plain_strings(self) -> None:
        plain = BucketConfig.model_validate(
            {"bucket": "b", "access_key_id": "i", "secret_access_key": "s"}
        )
        wrapped = BucketConfig(
            bucket="b", access_key_id=SecretStr("i"), secret_access_key=SecretStr("s")
        )
        assert plain == wrapped

    def test_secrets_are_not_shown(self) -> None:
        config = BucketConfig.for_r2(
            "abc",
            "b",
            SECRET,
            SECRET,
            session_token=SECRET,
            extra_put_args={"SSECustomerKey": SECRET},
        )
        assert SECRET not in f"{config} {config!r} {config.model_dump_json(include={'bucket'})}"

    def test_an_error_in_another_field_shows_no_secret(self) -> None:
        with pytest.raises(ValidationError) as caught:
            BucketConfig.for_r2("abc", "b", SECRET, SECRET, concurrency=SECRET)
        assert SECRET not in f"{caught.value} {caught.value!r}"


class TestForR2:
    def test_endpoint_and_more_fields(self) -> None:
        config = BucketConfig.for_r2("abc123", "b", "i", SecretStr("s"), key="k.db")
        assert config.endpoint_url == "https://abc123.r2.cloudflarestorage.com"
        assert (config.bucket, config.key, config.region) == ("b", "k.db", "auto")
        assert secrets_of(config) == ("i", "s")

    def test_a_jurisdiction_has_an_endpoint_of_its_own(self) -> None:
        url = "https://abc123.eu.r2.cloudflarestorage.com"
        config = BucketConfig.for_r2("abc123", "b", "i", "s", endpoint_url=url)
        assert config.endpoint_url == url

    @pytest.mark.parametrize("account_id", ["", "evil.example/", "me@evil", "a b", "a\n"])
    def test_an_account_id_cannot_change_the_host(self, account_id: str) -> None:
        with pytest.raises(ValueError, match="account id"):
            BucketConfig.for_r2(account_id, "b", "i", "s")


class TestOtherModels:
    def test_snapshot_defaults(self) -> None:
        assert SnapshotConfig().model_dump() == {
            "interval_seconds": 60.0,
            "min_interval_seconds": 5.0,
            "keep_previous": True,
            "checkpoint": "auto",
            "checkpoint_interval_seconds": 300.0,
            "retention_seconds": 86_400.0,
            "durability": "flush",
            "integrity_check": "full",
            "follow_seconds": None,
            "max_staleness_seconds": None,
            "shutdown_timeout_seconds": 30.0,
        }

    def test_min_interval_may_be_zero(self) -> None:
        assert SnapshotConfig(min_interval_seconds=0).min_interval_seconds == 0

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("interval_seconds", 0),
            ("interval_seconds", float("inf")),
            ("min_interval_seconds", -0.1),
            ("min_interval_seconds", float("nan")),
            ("shutdown_timeout_seconds", 0),
            ("integrity_check", "maybe"),
            ("retention_seconds", 0),
            ("durability", "always"),
            ("checkpoint", "never"),
            ("checkpoint_interval_seconds", 0),
            ("follow_seconds", 0),
            ("max_staleness_seconds", -1),
            ("compression", "lz4"),
        ],
    )
    def test_snapshot_out_of_range_or_unknown(self, field: str, value: object) -> None:
        with pytest.raises(ValidationError, match=field):
            SnapshotConfig.model_validate({field: value})

    def test_profiling_defaults(self) -> None:
        assert ProfilingConfig().model_dump() == {
            "io_counters": False,
            "memory": False,
            "cpu": False,
            "output_dir": Path("buckethead-profiles"),
        }


class TestMasked:
    def test_secrets(self) -> None:
        config = BucketConfig.for_r2(
            "abc", "b", SECRET, SECRET, extra_put_args={"SSECustomerKey": SECRET, "ACL": "private"}
        )
        shown = masked(config)
        assert SECRET not in repr(shown)
        assert shown["access_key_id"] == shown["secret_access_key"] == MASK
        assert shown["session_token"] is None
        assert shown["extra_put_args"] == {"SSECustomerKey": MASK, "ACL": "private"}
        assert shown["bucket"] == "b"
        assert shown.keys() == BucketConfig.model_fields.keys()

    def test_the_configuration_itself_is_not_touched(self) -> None:
        config = BucketConfig.for_r2("abc", "b", "i", "s", extra_put_args={"SSECustomerKey": "k"})
        masked(config)
        assert secrets_of(config) == ("i", "s")
        assert config.extra_put_args == {"SSECustomerKey": "k"}


class TestEnvironment:
    def test_every_variable(self, set_env: SetEnv) -> None:
        set_env(NEWER)
        config = BucketHeadSettings().to_bucket_config()
        assert (config.bucket, config.key, config.region) == ("new", "new.db", "eu-west-1")
        assert config.endpoint_url == "https://new.example"
        assert secrets_of(config) == ("new-id", "new-secret")

    def test_defaults_where_nothing_is_set(self, set_env: SetEnv) -> None:
        set_env({"BUCKETHEAD_BUCKET__NAME": "b"})
        assert BucketHeadSettings().to_bucket_config() == BucketConfig(bucket="b")

    def test_an_account_id_gives_the_r2_endpoint(self, set_env: SetEnv) -> None:
        set_env({"BUCKETHEAD_BUCKET__NAME": "b", "BUCKETHEAD_CLOUDFLARE__ACCOUNT_ID": "abc"})
        config = BucketHeadSettings().to_bucket_config()
        assert config.endpoint_url == "https://abc.r2.cloudflarestorage.com"

    def test_an_endpoint_goes_before_an_account_id(self, set_env: SetEnv) -> None:
        set_env({**NEWER, "BUCKETHEAD_CLOUDFLARE__ACCOUNT_ID": "abc"})
        assert BucketHeadSettings().to_bucket_config().endpoint_url == "https://new.example"

    def test_empty_means_not_set(self, set_env: SetEnv) -> None:
        set_env(dict.fromkeys([*NEWER, *OLDER], ""))
        assert configured_bucket() is None

    def test_older_names_are_not_read(self, set_env: SetEnv) -> None:
        set_env(OLDER)
        with pytest.raises(ConfigError, match="BUCKETHEAD_BUCKET__NAME"):
            BucketHeadSettings().to_bucket_config()

    def test_other_variables_are_none_of_our_business(self, set_env: SetEnv) -> None:
        set_env({"BUCKETHEAD_BUCKET__NAME": "b", "BUCKETHEAD_LATER": "x", "R2_LATER": "x"})
        assert configured_bucket() == BucketConfig(bucket="b")

    @pytest.mark.parametrize(
        ("variable", "value", "message"),
        [
            ("BUCKETHEAD_BUCKET__NAME", "a b", "bucket name"),
            ("BUCKETHEAD_BUCKET__NMAE", "x", "no such setting"),
            ("BUCKETHEAD_BUCKET__ENDPOINT_URL", f"https://u:{SECRET}@h", "user name or password"),
            ("BUCKETHEAD_BUCKET__ENDPOINT_URL", f"https://h?t={SECRET}", "query"),
            ("BUCKETHEAD_CLOUDFLARE__ACCOUNT_ID", "a/b", "account id"),
            ("BUCKETHEAD_SNAPSHOT__KEY", "/k", "leading slash"),
            ("BUCKETHEAD_SNAPSHOT__BRANCH", "a/b", "no name for a branch"),
            ("BUCKETHEAD_SNAPSHOT__INTERVAL_SECONDS", "5", "no such setting"),
            ("BUCKETHEAD_BUCKET", SECRET, "BUCKETHEAD_BUCKET__NAME"),
            ("BUCKETHEAD_BUCKET", f'"{SECRET}"', "BUCKETHEAD_BUCKET__NAME"),
            ("R2_BUCKET", "a b", "bucket name"),
            ("R2_ACCOUNT_ID", "a/b", "account id"),
            ("R2_ENDPOINT_URL", f"https://u:{SECRET}@h", "user name or password"),
            ("BUCKETHEAD_KEY", "/k", "leading slash"),
            ("BUCKETHEAD_BRANCH", "../a", "no name for a branch"),
        ],
    )
    def test_a_bad_value_is_one_line_naming_the_variable(
        self, set_env: SetEnv, variable: str, value: str, message: str
    ) -> None:
        set_env({variable: value})
        with pytest.raises(ConfigError, match=message) as caught:
            configured_bucket()
        text = str(caught.value)
        assert variable in text
        assert "\n" not in text
        assert SECRET not in f"{text} {caught.value!r}"

    def test_every_fault_is_named(self, set_env: SetEnv) -> None:
        set_env({"BUCKETHEAD_SNAPSHOT__KEY": "/k", "R2_BUCKET": "a b"})
        with pytest.raises(ConfigError, match=r"SNAPSHOT__KEY.*R2_BUCKET"):
            configured_bucket()

    def test_half_a_key_pair(self, set_env: SetEnv) -> None:
        set_env({"BUCKETHEAD_BUCKET__NAME": "b", "BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY": SECRET})
        with pytest.raises(ConfigError, match="set both or neither") as caught:
            configured_bucket()
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("settings", [BucketHeadSettings, BucketSettings])
    def test_settings_show_no_secret(
        self, set_env: SetEnv, settings: type[BucketHeadSettings]
    ) -> None:
        secrets = {name: SECRET for name in (*NEWER, *OLDER) if "ACCESS_KEY" in name}
        set_env({**NEWER, **OLDER, **secrets})
        read = settings()
        assert SECRET not in f"{read} {read!r}"
        assert secrets_of(read.to_bucket_config()) == (SECRET, SECRET)


class TestOlderNames:
    def test_every_variable(self, set_env: SetEnv) -> None:
        set_env(OLDER)
        config = BucketSettings.from_env().to_bucket_config()
        assert (config.bucket, config.key, config.region) == ("old", "old.db", "auto")
        assert config.endpoint_url == "https://old.example"
        assert secrets_of(config) == ("old-id", "old-secret")

    def test_an_account_id_gives_the_r2_endpoint(self, set_env: SetEnv) -> None:
        set_env({"R2_BUCKET": "b", "R2_ACCOUNT_ID": "abc"})
        config = BucketSettings.from_env().to_bucket_config()
        assert config.endpoint_url == "https://abc.r2.cloudflarestorage.com"

    def test_newer_names_win(self, set_env: SetEnv) -> None:
        set_env({**OLDER, **NEWER})
        from_newer_alone = BucketHeadSettings().to_bucket_config()
        assert BucketSettings.from_env().to_bucket_config() == from_newer_alone

    def test_each_name_wins_for_itself(self, set_env: SetEnv) -> None:
        set_env({**OLDER, "BUCKETHEAD_BUCKET__NAME": "new"})
        config = BucketSettings.from_env().to_bucket_config()
        assert (config.bucket, config.key) == ("new", "old.db")
        assert secrets_of(config) == ("old-id", "old-secret")

    def test_a_newer_account_id_wins_over_an_older_endpoint(self, set_env: SetEnv) -> None:
        set_env({**OLDER, "BUCKETHEAD_CLOUDFLARE__ACCOUNT_ID": "abc"})
        config = BucketSettings.from_env().to_bucket_config()
        assert config.endpoint_url == "https://abc.r2.cloudflarestorage.com"

    def test_halves_of_two_key_pairs_are_never_joined(self, set_env: SetEnv) -> None:
        set_env({**OLDER, "BUCKETHEAD_BUCKET__ACCESS_KEY_ID": "new-id"})
        with pytest.raises(ConfigError, match="set both or neither"):
            BucketSettings.from_env().to_bucket_config()


class TestToml:
    FLAT = """
        [env]
        BUCKETHEAD_BUCKET__NAME = "t"
        BUCKETHEAD_BUCKET__ACCESS_KEY_ID = "i"
        BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY = "s"
        BUCKETHEAD_CLOUDFLARE__ACCOUNT_ID = "abc"
        BUCKETHEAD_SNAPSHOT__KEY = "t.db"
        BUCKETHEAD_SNAPSHOT__BRANCH = "main"
        """
    NESTED = """
        [env.bucket]
        name = "t"
        access_key_id = "i"
        secret_access_key = "s"
        [env.cloudflare]
        account_id = "abc"
        [env.snapshot]
        key = "t.db"
        """
    NESTED_UPPER = """
        [env.BUCKET]
        NAME = "t"
        ACCESS_KEY_ID = "i"
        SECRET_ACCESS_KEY = "s"
        [env.CLOUDFLARE]
        ACCOUNT_ID = "abc"
        [env.SNAPSHOT]
        KEY = "t.db"
        """
    MIXED = """
        [env]
        buckethead_bucket__name = "t"
        BUCKETHEAD_SNAPSHOT__KEY = "t.db"
        cloudflare.account_id = "abc"
        [env.bucket]
        access_key_id = "i"
        secret_access_key = "s"
        """

    @pytest.mark.parametrize("text", [FLAT, NESTED, NESTED_UPPER, MIXED])
    @pytest.mark.parametrize("settings", [BucketHeadSettings, BucketSettings])
    def test_spellings(
        self, write_toml: WriteToml, text: str, settings: type[BucketHeadSettings]
    ) -> None:
        write_toml(text)
        expected = BucketConfig.for_r2("abc", "t", "i", "s", key="t.db")
        assert settings().to_bucket_config() == expected

    def test_the_environment_wins_variable_by_variable(
        self, write_toml: WriteToml, set_env: SetEnv
    ) -> None:
        write_toml(self.NESTED)
        set_env({"BUCKETHEAD_BUCKET__NAME": "e", "BUCKETHEAD_SNAPSHOT__KEY": ""})
        expected = BucketConfig.for_r2("abc", "e", "i", "s", key="t.db")
        assert BucketHeadSettings().to_bucket_config() == expected

    def test_older_names(self, write_toml: WriteToml, set_env: SetEnv) -> None:
        write_toml('[env]\nR2_BUCKET = "old"\nBUCKETHEAD_KEY = "old.db"\n')
        assert configured_bucket() == BucketConfig(bucket="old", key="old.db")
        set_env({"R2_BUCKET": "e"})
        assert configured_bucket() == BucketConfig(bucket="e", key="old.db")
        with pytest.raises(ConfigError, match="no bucket name"):
            BucketHeadSettings().to_bucket_config()

    def test_newer_names_of_the_file_win_over_older_of_the_environment(
        self, write_toml: WriteToml, set_env: SetEnv
    ) -> None:
        write_toml('[env.bucket]\nname = "t"\n')
        set_env({"R2_BUCKET": "e"})
        assert configured_bucket() == BucketConfig(bucket="t")

    @pytest.mark.parametrize(
        "text",
        ["", "[env]", '[projects.a]\nname = "x"', '[env]\nAWS_PROFILE = "p"\nBUCKETHEAD_KEY = ""'],
    )
    def test_nothing_of_ours(self, write_toml: WriteToml, text: str) -> None:
        write_toml(text)
        assert configured_bucket() is None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (f'[env\nx = "{SECRET}"', "config.toml is not valid TOML"),
            (f'[env]\nx = "{SECRET}', "config.toml is not valid TOML"),
            (f'env = "{SECRET}"', "'env' is not a table"),
            (f'[env]\nbucket = "{SECRET}"', "BUCKETHEAD_BUCKET: is a group"),
            (f'[env.bucket]\nnmae = "{SECRET}"', "BUCKETHEAD_BUCKET__NMAE: no such setting"),
            (f'[env.buckt]\nname = "{SECRET}"', "BUCKETHEAD_BUCKT: no such setting"),
            (f'[env]\nBUCKETHEAD_BUKET__NAME = "{SECRET}"', "BUCKETHEAD_BUKET: no such setting"),
            ("[env.bucket]\nname = 5", "BUCKETHEAD_BUCKET__NAME: .*valid string"),
            ("[env]\nBUCKETHEAD_KEY = 5", "BUCKETHEAD_KEY: .*valid string"),
            ('[env.bucket]\nname = "a"\nNAME = "b"', "bucket.name twice"),
            (f'[env]\nbucket.name="a"\nBUCKETHEAD_BUCKET__NAME = "{SECRET}"', "bucket.name twice"),
            (f'[env]\nBUCKETHEAD_BUCKET="{SECRET}"\nbucket.name="b"', "value and as a table"),
        ],
    )
    def test_bad_files(self, write_toml: WriteToml, text: str, message: str) -> None:
        write_toml(text)
        with pytest.raises(ConfigError, match=message) as caught:
            configured_bucket()
        assert "\n" not in str(caught.value)
        assert SECRET not in f"{caught.value} {caught.value!r}"

    def test_not_utf8(self, write_toml: WriteToml) -> None:
        write_toml("").write_bytes(b'[env]\nx = "\xff"')
        with pytest.raises(ConfigError, match="not valid TOML"):
            configured_bucket()

    def test_unreadable(self, write_toml: WriteToml) -> None:
        path = write_toml("")
        path.unlink()
        path.mkdir()  # root may read any file, but nobody a directory
        with pytest.raises(ConfigError, match=r"cannot read .*config\.toml"):
            configured_bucket()

    def test_a_home_that_is_no_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", os.devnull)
        assert configured_bucket() is None


class TestConfiguredBucket:
    def test_nothing_configured(self) -> None:
        assert configured_bucket() is None

    def test_without_a_bucket_name_the_error_says_what_was_found(self, set_env: SetEnv) -> None:
        set_env({"R2_SECRET_ACCESS_KEY": SECRET, "BUCKETHEAD_BUCKET__REGION": "x"})
        with pytest.raises(ConfigError) as caught:
            configured_bucket()
        text = str(caught.value)
        assert "found: region, secret_access_key" in text
        assert "BUCKETHEAD_BUCKET__NAME" in text
        assert SECRET not in text

    @pytest.mark.parametrize("names", [NEWER, OLDER])
    def test_any_single_setting_without_a_name_is_an_error(
        self, set_env: SetEnv, names: dict[str, Any]
    ) -> None:
        set_env({name: v for name, v in names.items() if name.endswith("ENDPOINT_URL")})
        with pytest.raises(ConfigError, match="found: endpoint_url"):
            configured_bucket()

"""What a database offers beside SQL, as Python views: keys and values, documents."""

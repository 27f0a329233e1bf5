"""What a person sees of a running volume: profiles and status."""

"""The embedded demo: synthetic speakers and a small base model that hears commands."""

"""What is known of a relay: by its process, and by outbox, engine and inbox."""

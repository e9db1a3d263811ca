"""What must be known of other people's networks: where the level enters, and how to ask without it."""

"""What the commands do: load, check, measure, write. One module for each, and one for their options."""

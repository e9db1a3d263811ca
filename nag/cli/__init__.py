"""The command `nag`: one file per command. Nobody imports this wing."""

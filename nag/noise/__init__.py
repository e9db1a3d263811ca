"""The forward process, its levels, and what a diffusers scheduler says of them; the lowest wing: it imports no other."""

"""Own and pretrained models, their parts by role, and layers that see real tokens only."""

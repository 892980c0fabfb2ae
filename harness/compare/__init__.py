"""`harness compare`: who wins, by how much, is it noise, and what does it cost."""

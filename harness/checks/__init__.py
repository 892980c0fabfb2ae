"""What can be proved or looked at again: the machine, the engine, a finished run."""

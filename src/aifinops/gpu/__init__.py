"""GPU time: which devices this process holds, and for how long."""

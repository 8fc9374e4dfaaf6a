"""`lora-drift trainer-watch`: what a newer trainer renders otherwise than the newest tag, and since which commits."""

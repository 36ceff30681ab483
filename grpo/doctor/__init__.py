"""The program behind `grpo doctor`: what works on this machine, and how fast it is."""

"""Post-training: supervised fine-tuning, preferences, and reinforcement learning."""

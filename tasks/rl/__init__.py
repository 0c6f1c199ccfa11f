"""Reinforcement learning: sample from the policy, score what it wrote, learn from that."""

"""The programs behind `grpo demos`: demonstrations collected and checked."""

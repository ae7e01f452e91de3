"""One NVIDIA GPU whose SMs are divided between the two lanes by green contexts (DESIGN section 2)."""

"""What a run may touch, and how each touch is made safe."""

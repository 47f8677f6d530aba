"""Where both worlds meet: build a run, loop, save, evaluate. Start with loop."""

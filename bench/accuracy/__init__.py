"""Error of adapting methods on streams of corrupted images, side by side: `edgetta bench accuracy`."""

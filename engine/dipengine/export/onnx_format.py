"""What an exported generator's ONNX file says of itself: written by `exporter`, read by `rendering`.

The file's metadata, key `dipengine`, is one JSON object:

| key | what |
|---|---|
| format, version | 1; of the package |
| task, source_sha256 | what was restored, hash of the source file |
| width, height, channels, dtype | of the image; dtype is that of its data |
| values | low, high: data = low + (high - low) * output; with a curve and its inverse, see below |
| canvas, origin | [H, W] of z; [top, left] of the image on it |
| generator | the architecture |
| precision | fp32, fp16 or int8 |
| z | "stored", or "seed": the file holds none and a host draws it (below) |
| code | kind, depth, seed, scale of z |
| psnr, consolidation_iterations | dB of what ONNX Runtime paints against the delivered image (peak 1), null where they are equal |

z of kind "noise" is uint8 [1, depth, H, W]. Its element (c, y, x) is byte i % 16 (little-endian within the four words) of the
Philox4x32-10 block i / 16, i = (y W + x) depth + c: key = (low, high half of the seed), counter = (low, high half of the block's
index, 0, 0) (J. Salmon et al., SC'11; csrc/math/philox.h has it in 30 lines). The graph multiplies by scale / 255. z of kind
"meshgrid" is float32 [1, 2, H, W]: x / (W - 1), then y / (H - 1). An image as z is always stored.

values with a curve (kind "anscombe"; gain, offset, read_noise of the sensor) were fitted through f(v) = 2 sqrt(max(0, (v -
offset) gain + 3/8 + r^2)), r = gain * read_noise. A stabilised value is d = max(output * (f(high) - f(low)) + f(low), means[0]), and

    data = (d * d / 4 + rest) / gain + offset
    rest = rests[i] + (d - means[i]) * ((rests[i+1] - rests[i]) / (means[i+1] - means[i])),  the last i with means[i] <= d;
           from d = means[n-1] on: limit + (rests[n-1] - limit) * (s * s),  s = means[n-1] / d,  limit = -1/8 - r^2

with values["inverse"] = {"means": [n], "rests": [n]}, decimal float64, means not falling. All in float64, in the order that is
written and without fused multiply-adds, integers rounded half to even and clipped: then the bits are those of `dipengine render`.
Files of versions before that wrote `inverse` lack it; Python computes it anew from the sensor.
"""

FORMAT = 1
KEY = "dipengine"

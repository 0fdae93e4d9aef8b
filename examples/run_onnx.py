"""Score images with ONNX Runtime, without anomalib and torch: python run_onnx.py MODEL.onnx IMAGE...

Export the model first:
    anomalib export --model AprilGan --model.class_name bolt --model.k_shot 4 --model.few_shot_source path/to/good \
        --export_type onnx --export_root exported
The script writes a heatmap of each image to the current folder. Images may have any size.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, *files: str) -> None:
    """Print the class and the references of the model, then one line per image."""
    session = onnxruntime.InferenceSession(model)
    metadata = session.get_modelmeta().custom_metadata_map
    print(f"class {metadata['class_name']}, references {metadata['reference_files']}")
    outputs = [output.name for output in session.get_outputs()]
    for file in map(Path, files):
        image = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
        found = dict(zip(outputs, session.run(outputs, {"input": image.transpose(2, 0, 1)[None]}), strict=True))
        label = "abnormal" if found["pred_label"][0] else "normal"
        heatmap = Image.fromarray((found["anomaly_map"][0] * 255).astype(np.uint8))
        heatmap.resize((image.shape[1], image.shape[0])).save(f"{file.stem}.heatmap.png")
        print(f"{file}: score {found['pred_score'][0]:.3f}, {label}, {found['pred_mask'][0].mean():.1%} of it marked")


if __name__ == "__main__":
    main(*sys.argv[1:])

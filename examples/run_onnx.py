"""Score images with ONNX Runtime, without anomalib and torch.

Export the model first:
    anomalib export --model AprilGan --model.class_name bolt --model.k_shot 4 --model.few_shot_source path/to/good \
        --export_type onnx --export_root exported
The script writes a heatmap of each image to the current folder. Images may have any size.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from PIL import Image


def main(options: Namespace) -> None:
    """Print the class and the references of the model, then one line per image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(options.model)
    metadata = session.get_modelmeta().custom_metadata_map
    print(f"class {metadata['class_name']}, references {metadata['reference_files']}")
    outputs = [output.name for output in session.get_outputs()]
    for file in options.images:
        image = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
        found = dict(zip(outputs, session.run(outputs, {"input": image.transpose(2, 0, 1)[None]}), strict=True))
        label = "abnormal" if found["pred_label"][0] else "normal"
        heatmap = Image.fromarray((found["anomaly_map"][0] * 255).astype(np.uint8))
        heatmap.resize((image.shape[1], image.shape[0])).save(f"{file.stem}.heatmap.png")
        print(f"{file}: score {found['pred_score'][0]:.3f}, {label}, {found['pred_mask'][0].mean():.1%} of it marked")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported ONNX file")
    parser.add_argument("images", type=Path, nargs="+")
    main(parser.parse_args())

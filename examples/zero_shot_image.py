"""Score one image without any training: python zero_shot_image.py IMAGE CLASS_NAME [HEATMAP.png].

The score comes from CLIP's image embedding, as in the paper. The heatmap comes from the adapters.
"""

import sys

from anomalib.engine import Engine
from anomalib.visualization import visualize_anomaly_map

from anomalib_aprilgan import AprilGan


def main(image: str, class_name: str, heatmap: str = "heatmap.png") -> None:
    """Print score and label, and save the heatmap."""
    model = AprilGan(class_name=class_name, visualizer=False)
    (prediction,) = Engine(logger=False).predict(model, data_path=image)
    score, label = float(prediction.pred_score), bool(prediction.pred_label)
    print(f"{image}: score {score:.3f}, {'anomalous' if label else 'normal'}")
    visualize_anomaly_map(prediction.anomaly_map[0]).save(heatmap)
    print(f"Heatmap: {heatmap}")


if __name__ == "__main__":
    main(*sys.argv[1:])

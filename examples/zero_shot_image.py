"""Score one image without any training.

The score comes from CLIP's image embedding, as in the paper. The heatmap comes from the adapters.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter


def main(options: Namespace) -> None:
    """Print score and label, and save the heatmap."""
    from anomalib.engine import Engine
    from anomalib.visualization import visualize_anomaly_map

    from anomalib_aprilgan import AprilGan

    clip = {"backbone": options.backbone, "pretrained": options.pretrained}
    model = AprilGan(class_name=options.class_name, adapter=options.adapter, visualizer=False, **clip)
    (prediction,) = Engine(logger=False).predict(model, data_path=options.image)
    score, label = float(prediction.pred_score), bool(prediction.pred_label)
    print(f"{options.image}: score {score:.3f}, {'anomalous' if label else 'normal'}")
    visualize_anomaly_map(prediction.anomaly_map[0]).save(options.heatmap)
    print(f"Heatmap: {options.heatmap}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("class_name", help="name of the object or surface, for instance 'metal nut'")
    parser.add_argument("heatmap", nargs="?", default="heatmap.png", help="image to write")
    parser.add_argument("--backbone", help="architecture of open_clip, or ViT-builtin, which needs no download")
    parser.add_argument("--pretrained", default="auto", help="file with CLIP's weights, if there is no network")
    parser.add_argument("--adapter", default="auto", help="file with adapters, if there is no network")
    main(parser.parse_args())

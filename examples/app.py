"""Inspect photographs in the browser: python app.py [--port 7860] [--backbone NAME --pretrained FILE --adapter FILE].

The page takes a photograph and, if there are any, a few good images as references. It shows label, score and heatmap.
It can be opened on this machine only, and needs no network. Install with `pip install ".[app]"`.

The default backbone is ViT-builtin, which is part of the package, so that the app starts behind a firewall. It is small
and was trained on drawn defects. The paper's model finds more. Its files can be downloaded on another machine:
    python app.py --backbone ViT-L-14-336 --pretrained ViT-L-14-336px.pt --adapter visa_pretrained.pth
"""

import argparse
import logging
import os
import warnings
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, ImageOps

if TYPE_CHECKING:
    import gradio

BUILT_IN = "ViT-builtin"
BUILT_IN_NOTE = "**ViT-builtin is small and was trained on drawn defects.** `--help` says how to use the paper's model."
GUIDE = "Choose a photograph. If you have good images of the same object, choose some of them as references."
SHOWN = (1024, 1024)  # largest width and height of images in the page


class Inspector:
    """Scores photographs. The class and the good images are encoded when they change, not for each photograph."""

    def __init__(self, **arguments: Any) -> None:
        from anomalib_aprilgan import AprilGan

        self.model = AprilGan(**arguments, visualizer=False, predictions=False)
        self.current: tuple[str, list[str]] | None = None

    def set_up(self, class_name: str, good: list[str]) -> None:
        """Name the class and the good images if they have changed. The next prediction encodes them."""
        if self.current == (class_name, good):
            return
        self.current = None  # an image may be refused
        files = [upright(file) for file in good]
        self.model.class_name, self.model.k_shot, self.model.few_shot_source = class_name, len(files), None
        if files:
            with NamedTemporaryFile(
                "w", suffix=".txt", encoding="utf-8", delete=False, dir=Path(files[0]).parent
            ) as sources:
                sources.write("\n".join(files))
            self.model.few_shot_source = Path(sources.name)
        self.current = (class_name, good)

    def inspect(self, photograph: str, good: list[str], class_name: str) -> tuple[str, float, list[Image.Image]]:
        """Return label, score in [0, 1], and two images: the photograph, and the heatmap on it.

        Raises:
            ValueError: If a file cannot be used; the message names it.
        """
        from anomalib.engine import Engine
        from anomalib.visualization import visualize_anomaly_map

        self.set_up(class_name, good)
        file = upright(photograph)
        (prediction,) = Engine(logger=False, enable_progress_bar=False).predict(self.model, data_path=file)
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        image.thumbnail(SHOWN)
        heatmap = Image.blend(image, visualize_anomaly_map(prediction.anomaly_map[0]).resize(image.size), 0.5)
        label = "anomalous" if prediction.pred_label else "normal"
        return label, round(float(prediction.pred_score), 3), [image, heatmap]


def upright(file: str) -> str:
    """Return an image file, or an upright copy beside it if it has an EXIF orientation, which anomalib ignores."""
    try:
        with Image.open(file) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return file
            turned = Path(file).with_suffix(".upright.tif")
            ImageOps.exif_transpose(image).save(turned)
            return str(turned)
    except (OSError, Image.DecompressionBombError) as error:
        msg = f"The file {file} cannot be used: {error}. Choose another one, for instance a JPEG or PNG file."
        raise ValueError(msg) from error


def make_page(inspector: Inspector, note: str = "") -> "gradio.Blocks":
    """Lay out the page and connect its button to the inspector."""
    import gradio

    def inspect(photograph: str | None, good: list[str] | None, class_name: str) -> tuple[str, float, Any]:
        if photograph is None:
            msg = "Choose a photograph first."
            raise gradio.Error(msg, print_exception=False)
        try:
            return inspector.inspect(photograph, good or [], class_name.strip() or "object")
        except (ValueError, RuntimeError) as error:
            text = str(error)
            for file in (photograph, *(good or [])):  # users know the names of their files, not our folders
                text = text.replace(f"{Path(file).parent}{os.sep}", "")
            raise gradio.Error(text, duration=None, print_exception=False) from error

    with gradio.Blocks(title="APRIL-GAN") as page:
        gradio.Markdown(f"# APRIL-GAN\n{GUIDE}\n\n{note}")
        with gradio.Row():
            with gradio.Column():
                photograph = gradio.File(label="Photograph", height=120)
                good = gradio.File(label="Good images (optional)", file_count="multiple")
                class_name = gradio.Textbox("object", label="Name of the object or surface")
                button = gradio.Button("Inspect", variant="primary")
            with gradio.Column():
                label = gradio.Textbox(label="Label")
                score = gradio.Textbox(label="Score (above 0.5: anomalous)")
                heatmap = gradio.ImageSlider(label="Photograph and heatmap", format="jpeg", interactive=False)
        inputs, outputs = [photograph, good, class_name], [label, score, heatmap]
        button.click(inspect, inputs, outputs, api_name="inspect", concurrency_limit=1)  # the inspector has one setup
    return page


def main() -> None:
    """Read the command line, load the model, and serve the page until Ctrl-C. Uploaded files are deleted then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=BUILT_IN, help="ViT-builtin (default), or an open_clip architecture")
    parser.add_argument("--pretrained", default="auto", help="CLIP's weights: a file, or a tag of open_clip (download)")
    parser.add_argument("--adapter", default="auto", help="adapter file or checkpoint, or visa or mvtec (download)")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: 7860)")
    arguments = vars(parser.parse_args())
    port = arguments.pop("port")
    with TemporaryDirectory() as uploads:
        no_proxy = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
        os.environ["no_proxy"] = f"127.0.0.1,{no_proxy}"  # else gradio asks a company's proxy for its own page
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        import gradio

        try:
            page = make_page(Inspector(**arguments), BUILT_IN_NOTE if arguments["backbone"] == BUILT_IN else "")
            logging.disable(logging.WARNING)  # Lightning repeats its messages for each photograph
            warnings.simplefilter("ignore")
            theme = gradio.themes.Default(font=["system-ui", "sans-serif"])  # gradio's own font lacks bold letters
            page.launch(server_name="127.0.0.1", server_port=port, theme=theme, footer_links=[])
        except (OSError, ValueError, RuntimeError) as error:
            parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

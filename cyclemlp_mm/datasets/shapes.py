"""Demo data: coloured shapes that occlude one another on textured backgrounds.

The generator's public names; its parts are in modules of their own.
"""

from .ade20k_writer import SEGMENTATION_CLASSES, SEGMENTATION_PALETTE, label_map, write_ade20k
from .coco_writer import write_coco
from .image_folder_writer import write_image_folders, write_image_lists
from .shape_scenes import CLASSES, PALETTE, Scene, make_scene

__all__ = [
    'CLASSES',
    'PALETTE',
    'SEGMENTATION_CLASSES',
    'SEGMENTATION_PALETTE',
    'Scene',
    'label_map',
    'make_scene',
    'write_ade20k',
    'write_coco',
    'write_image_folders',
    'write_image_lists',
]

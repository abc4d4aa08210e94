"""Corrupted images, made while they are loaded: ImageNet-C's corruptions, arXiv 1903.12261."""

import zlib
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from mmengine.registry import TRANSFORMS

from cyclemlp_mm.errors import MissingToolboxError, UserError

#: Names by group. The first four groups are the benchmark's 15, 'extra' are those to develop with.
CORRUPTIONS = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
    'extra': ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate'),
}
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = 'imagecorruptions-imaug'
#: Shortest side that the library takes.
LEAST = 32


def require_library() -> None:
    """Raise a MissingToolboxError unless the library of corruptions can be imported.

    The package ``imagecorruptions`` has the same module, but its blur by glass takes no seed.
    """
    fix = f"pip install '{PACKAGE}>=1.1.5' (it is in the extra 'corruptions')"
    try:
        version(PACKAGE)
        import imagecorruptions  # noqa: F401
    except (PackageNotFoundError, ImportError) as error:
        raise MissingToolboxError(f'corruptions need {PACKAGE} ({error}): {fix}') from error


@TRANSFORMS.register_module()
class CorruptImage:
    """Corrupts ``results['img']``, uint8 (H, W, 3), BGR, sides from 32, by ``imagecorruptions``.

    The library gets RGB, for which its corruptions were written. An image looks the same in every
    run and in every worker: the random numbers come from corruption, severity and ``sample_idx``.

    Args:
        corruption (str): One of :data:`CORRUPTIONS`.
        severity (int): 1 to 5.

    Raises:
        ValueError: There is no such corruption or severity.
        MissingToolboxError: The library is not installed.
    """

    def __init__(self, corruption: str, severity: int = 1) -> None:
        names = [name for group in CORRUPTIONS.values() for name in group]
        if corruption not in names:
            raise ValueError(f'corruption must be one of {", ".join(names)}, but got {corruption}')
        if severity not in SEVERITIES:
            raise ValueError(f'severity must be 1 to 5, but got {severity!r}')
        require_library()
        self.corruption = corruption
        self.severity = severity
        if corruption == 'glass_blur':  # compiled now, for seconds, and not in every worker
            self(dict(img=np.zeros((LEAST, LEAST, 3), np.uint8)))

    def __call__(self, results: dict) -> dict:
        """Corrupt one image; raises a UserError for one that the library does not take."""
        from imagecorruptions import corrupt

        image = results['img']
        is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        if not is_rgb or min(image.shape[:2]) < LEAST:
            what = f'{results.get("img_path")} is {image.shape} of {image.dtype}'
            fix = f'need ({LEAST} or more, {LEAST} or more, 3) of uint8: leave the image out'
            raise UserError(f'{what}, but corruptions {fix}')
        entropy = zlib.crc32(self.corruption.encode()), self.severity, results.get('sample_idx', 0)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # These two draw from generators of their own, all others from numpy's global one.
        own = dict(seed=seed) if self.corruption in ('glass_blur', 'impulse_noise') else {}
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            rgb = np.ascontiguousarray(image[..., ::-1])
            rgb = corrupt(rgb, self.severity, self.corruption, **own)
        finally:
            np.random.set_state(state)
        results['img'] = np.ascontiguousarray(rgb[..., ::-1])
        return results

"""Every method's command line for a data set of any size, by rules that are the same for all.

* All methods see two crops (CW-RGP 4: four) of the same size, shares of the area, colour strength and blur, in batches
  of the same size. With the same seed the images come in the same order, and crops have the same boxes and flips.
  W2SSL's montages of four patches have that size, and its patches have no largest share. As published, INTL, TWIST,
  DINO and W2SSL change saturation half as much, and INTL, TWIST and DINO resize bicubically. Nothing is solarised.
* Learning rates are those that five to eight tries on the quickstart's photographs speak for at 128 images a step
  (docs/results.md), times batch / 128; Adam's times its square root. ``rate`` multiplies them.
* A tenth of the epochs is warm-up (at least one where there are two or more), then a cosine, where a method has these.
* Hidden layers have twice the backbone's features; embeddings half of them, or (joint-embedding methods) twice. INTL's
  are at least twice the batch, since it whitens the batch over them, and each group of CW-RGP's at least twice what is
  whitened together; W-MSE's are half of what it whitens together.
* Momentum copies have their paper's momentum, or in short runs 1 - 5 / steps, so that they keep up.
* Clusters and prototypes: one for 42 images, at least 10 and at most 3000. SwAV, SeLa-v2 and TWIST share each batch
  among theirs, so they have at most one for each image of a batch. (With more, SwAV's paper keeps a queue.)
* Queues hold the images of as many whole batches as there are in the data, up to 65,536.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class Scale:
    """What a recipe depends on.

    Attributes:
        images: to train on.
        width: the backbone's features.
        epochs, batch: of each run.
        size: side of the crops in pixels.
        area: smallest and largest share of the image area.
        jitter: strength: brightness and contrast by 0.4 of it, hue by 0.1.
        grayscale, blur: probabilities.
        clusters: 0 follows the rule.
        rate: factor on the learning rate.
        teacher: checkpoint that DisCo learns from.
    """

    images: int
    width: int
    epochs: int
    batch: int
    size: int
    area: tuple[float, float] = (0.2, 1.0)
    jitter: float = 1.0
    grayscale: float = 0.2
    blur: float = 0.0
    clusters: int = 0
    rate: float = 1.0
    teacher: str = ""

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch

    @property
    def warmup(self) -> int:
        return max(1, round(self.epochs / 10)) if self.epochs > 1 else 0

    @property
    def num_clusters(self) -> int:
        return self.clusters or min(3000, max(10, round(self.images / 42)))

    @property
    def shared_clusters(self) -> int:
        """Where the images of a batch are shared among them."""
        return self.clusters or min(self.batch, self.num_clusters)

    @property
    def queue(self) -> int:
        return min(65536 // self.batch, self.steps_per_epoch) * self.batch

    def momentum(self, published: float) -> float:
        return min(published, round(1 - 5 / max(50, self.steps_per_epoch * self.epochs), 4))

    def lr(self, at_128: float, power: float = 1.0) -> float:
        return float(f"{self.rate * at_128 * (self.batch / 128) ** power:.4g}")

    def lr_for_256(self, at_128: float) -> float:
        """For scripts that scale the rate for 256 images themselves."""
        return float(f"{self.rate * at_128 * 2:.4g}")

    def adam_for_256(self, at_128: float) -> float:
        """The same, where it goes by the square root."""
        return float(f"{self.lr(at_128, 0.5) * 256 / self.batch:.4g}")


Words = Sequence[object]


def _multi_crop(s: Scale, method: str, heads: int, lr: float) -> Words:
    views = ["--nmb_crops", 2, "--size_crops", s.size, "--min_scale_crops", s.area[0], "--max_scale_crops", s.area[1]]
    colours = ["--jitter_strength", s.jitter / 2, "--grayscale", s.grayscale, "--blur", s.blur]
    clusters = s.num_clusters if method == "deepcluster-v2" else s.shared_clusters
    head: list[object] = ["--nmb_prototypes", *[clusters] * heads, "--hidden_mlp", 2 * s.width]
    head += ["--feat_dim", max(8, s.width // 2)]
    course = ["--batch_size", s.batch, "--base_lr", s.lr(lr), "--warmup_epochs", s.warmup]
    if method != "deepcluster-v2":  # whose prototypes are never trained
        course += ["--freeze_prototypes_niters", s.steps_per_epoch]
    return ["main_swav.py", "--method", method, *views, *colours, *head, *course]


def _twist(s: Scale) -> Words:
    views = ["--local_crops_number", 0, "--size_crops", s.size, s.size, "--min1", s.area[0], "--max1", s.area[1]]
    colours = ["--jitter_strength", s.jitter, "--grayscale", s.grayscale, "--blur", s.blur, "--solarize", 0]
    head = ["--hid_dim", 2 * s.width, "--dim", s.shared_clusters]
    course = ["--batch_size", s.batch, "--bunch_size", s.batch, "--lr", s.lr_for_256(3.85), "--warmup_epochs", s.warmup]
    return ["main_twist.py", *views, *colours, *head, *course, "--mme_epochs", s.epochs, "--sl_warmup_epochs", 0]


def _intl(s: Scale, method: str, lr: float) -> Words:
    views = ["--nmb_crops", 1, 1, "--crops_size", s.size, s.size, "--min_scale_crops", *[s.area[0]] * 2]
    views += ["--max_scale_crops", *[s.area[1]] * 2, "--gaussian_prob", s.blur, s.blur, "--solarization_prob", 0, 0]
    colours = ["--jitter_strength", s.jitter, "--grayscale", s.grayscale]
    head = ["--head_layers", 2, "--head_size", 2 * s.width, "--emb", max(2 * s.width, 2 * s.batch)]
    course = ["--bs", s.batch, "--lr", s.lr_for_256(lr), "--warmup_eps", s.warmup]
    course += ["--m", s.momentum(0.99)] if method == "intl_m" else []
    return ["main_intl.py", "--method", method, *views, *colours, *head, *course]


def _joint(s: Scale, method: str, *more: object, views: int = 2, optimizer: str = "adam", lr: float = 0.002) -> Words:
    crops = ["--num_samples", views, "--crop_size", s.size, "--crop_s0", s.area[0], "--crop_s1", s.area[1]]
    colours = [
        "--blur",
        s.blur,
        "--cj0",
        0.4 * s.jitter,
        "--cj1",
        0.4 * s.jitter,
        "--cj2",
        0.4 * s.jitter,
        "--cj3",
        0.1 * s.jitter,
    ]
    head = ["--head_layers", 2, "--head_size", 2 * s.width, *([] if "--emb" in more else ["--emb", 2 * s.width])]
    rate = s.lr(lr, 0.5) if optimizer == "adam" else s.lr_for_256(lr)
    course = [
        "--program",
        "cwrgp",
        "--wd",
        1e-6,
        "--bs",
        s.batch,
        "--optimizer",
        optimizer,
        "--lr",
        rate,
        "--warmup_iters",
        s.warmup * s.steps_per_epoch,
    ]
    course += ["--lr_step", "cos"] if optimizer == "adam" else []
    return ["main_cwrgp.py", "--method", method, *crops, *colours, "--gs_p", s.grayscale, *head, *course, *more]


def _whitened(s: Scale, method: str, *more: object, lr: float, views: int = 2) -> Words:
    return _joint(s, method, "--w_eps", 1e-3, *more, views=views, lr=lr)


def _divisor(number: int, at_most: int) -> int:
    """The largest one that is not above ``at_most``."""
    return next(one for one in range(min(number, at_most), 0, -1) if number % one == 0)


def _cwrgp(s: Scale, views: int, lr: float) -> Words:
    together, groups = _divisor(s.batch, 64), 2
    emb = max(2 * s.width, 2 * groups * together)
    return _whitened(s, "cwrgp", "--w_size", together, "--group", groups, "--emb", emb, views=views, lr=lr)


def _wmse(s: Scale) -> Words:
    together = _divisor(s.batch, 128)
    return _whitened(s, "wmse", "--axis", 1, "--w_size", together, "--emb", max(2, together // 2), lr=0.006)


def _moco(s: Scale, *more: object, lr: float = 0.06) -> Words:
    views = ["--aug_plus", "--crop_size", s.size, "--crop_scale", *s.area]
    colours = ["--jitter_strength", min(1.25, s.jitter), "--grayscale", s.grayscale, "--blur", s.blur]
    head = ["--mlp", "--moco_t", 0.2, "--hidden", 2 * s.width, "--moco_k", s.queue, "--moco_m", s.momentum(0.999)]
    course = ["--batch_size", s.batch, "--bn_parts", 4, "--cos", "--lr", s.lr(lr)]
    return ["main_disco.py", *views, *colours, *head, *course, *more]


def _w2ssl(s: Scale) -> Words:
    views = [
        "--crop_size",
        s.size // 2,
        "--crop_min",
        s.area[0],
        "--jitter_strength",
        s.jitter,
        "--grayscale",
        s.grayscale,
    ]
    head = ["--moco_mlp_dim", 4 * s.width, "--crop_proj_dim", s.width, "--loss_crop", 1.0]
    course = ["--batch_size", s.batch, "--warmup_epochs", s.warmup, "--lr", s.lr_for_256(9.0)]
    course += ["--moco_m_cos", "--moco_m", s.momentum(0.99)]
    return ["main_w2ssl.py", *views, "--solarize", 0, "--blur", s.blur, s.blur, *head, *course]


def _dino(s: Scale) -> Words:
    views = ["--local_crops_number", 0, "--size_crops", s.size, s.size, "--min1", s.area[0], "--max1", s.area[1]]
    colours = ["--jitter_strength", s.jitter, "--grayscale", s.grayscale, "--blur", s.blur, "--solarize", 0]
    head = ["--out_dim", 10 * s.num_clusters, "--hidden_dim", 2 * s.width, "--bottleneck_dim", max(8, s.width // 2)]
    course = ["--batch_size", s.batch, "--warmup_epochs", s.warmup, "--lr", s.adam_for_256(0.002)]
    course += ["--momentum_teacher", s.momentum(0.996)]
    return ["main_dino.py", *views, *colours, *head, *course]


TEACHER, DISTILLED = "moco", "disco"  # of the same seed
RECIPES: dict[str, Callable[[Scale], Words]] = {
    "swav": lambda s: _multi_crop(s, "swav", 1, 9.0),
    "deepcluster-v2": lambda s: _multi_crop(s, "deepcluster-v2", 3, 3.0),
    "sela-v2": lambda s: _multi_crop(s, "sela-v2", 3, 9.0),
    "twist": _twist,
    "intl": lambda s: _intl(s, "intl", 3.0),
    "intl_m": lambda s: _intl(s, "intl_m", 0.09),
    "cwrgp2": lambda s: _cwrgp(s, 2, 0.0002),
    "cwrgp4": lambda s: _cwrgp(s, 4, 0.0002),
    "wmse": _wmse,
    "simclr": lambda s: _joint(s, "contrastive"),
    "byol": lambda s: _joint(s, "byol", "--byol_tau", s.momentum(0.99), lr=0.006),
    "simsiam": lambda s: _joint(s, "simsiam", optimizer="sgd", lr=0.06),
    "barlowtwins": lambda s: _joint(s, "barlowtwins", lr=0.006),
    "vicreg": lambda s: _joint(s, "vicreg"),
    "zero_icl": lambda s: _joint(s, "zero_icl", lr=0.006),
    "moco": _moco,
    # the distilled term weighs 32 times as much, so that it wants a smaller rate
    "disco": lambda s: _moco(s, "--teacher", s.teacher, "--distill_norm", "ref32", lr=0.0045),
    "w2ssl": _w2ssl,
    "dino": _dino,
}
TITLES = {
    "swav": "SwAV",
    "deepcluster-v2": "DeepCluster-v2",
    "sela-v2": "SeLa-v2",
    "twist": "TWIST",
    "intl": "INTL",
    "intl_m": "INTL_M",
    "cwrgp2": "CW-RGP 2",
    "cwrgp4": "CW-RGP 4",
    "wmse": "W-MSE",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "barlowtwins": "Barlow Twins",
    "vicreg": "VICReg",
    "zero_icl": "Zero-ICL",
    "moco": "MoCo-v2",
    "disco": "DisCo",
    "w2ssl": "W2SSL",
    "dino": "DINO",
}


def require_batches(images: int, batch: int) -> None:
    """Raises UserError for batches that some method cannot have, or that the images do not fill."""
    if batch % 4 or batch < 8:
        raise UserError(f"--batch_size {batch}: expected a multiple of 4, at least 8")
    if images < batch:
        raise UserError(f"{images} images do not fill a batch of {batch}: lower --batch_size")


def words_of(method: str, scale: Scale) -> list[str]:
    """The script and the flags that tell this method's recipe."""
    return [str(word) for word in RECIPES[method](scale)]

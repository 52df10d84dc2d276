# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
r"""Clusters of ID images, which take the place of their classes where nobody has named these.

Adaloglou et al., "Adapting Contrastive Language-Image Pretrained (CLIP) Models for Out-of-Distribution Detection",
TMLR 2024, https://arxiv.org/abs/2303.05828. The clusters are those of k-means: Lloyd, "Least Squares Quantization in
PCM", IEEE Transactions on Information Theory 1982; Arthur and Vassilvitskii, "k-means++: The Advantages of Careful
Seeding", SODA 2007.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._checks import check_features, check_seed, check_whole
from ._rows import check_dimensions, chunks, unit

# Images per cluster that the centroids are found from. From 64 to 128, the squared distances of other images to their
# centroids fell by 1 % in a trial.
SAMPLE = 64


@torch.no_grad()
def fit_centroids(features: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    r"""Find the centers of clusters of ID images with k-means.

    Minimizes \\( \sum_i \min_c \lVert f_i - \mu_c \rVert^2 \\) over the centroids \\( \mu_c \\), with the embeddings
    scaled to unit norm. A centroid is the mean of the embeddings of its cluster, and shorter than they are.

    Of more than 64 images per cluster, so many are drawn at random to find the centroids from; more images hardly take
    more time then. With 1.28 million images of 512 dimensions, 1,000 clusters took five minutes of the processor
    (`benchmarks/feature_bank.py`). The result depends on the images and the seed, and not on the order of the images.

    Args:
        features (`torch.Tensor` of shape `(images, dim)`): Image embeddings, of any norm but 0.
        num_clusters (`int`): How many clusters to find, at most as many as there are distinct images.
        seed (`int`, *optional*, defaults to 0): Decides which images are drawn, and which the search begins at.

    Returns:
        `torch.Tensor` of shape `(num_clusters, dim)`: The centroids, float32, on the device of `features`.

    Raises:
        TypeError: `features` is not a tensor, or a number not whole.
        ValueError: Another shape, a row of zeros, a value that is not finite, a number of clusters or a seed outside
            its range, or fewer distinct images than clusters.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import fit_centroids
    >>> fit_centroids(torch.tensor([[0.6, 0.8], [0.8, 0.6], [-3.0, 0.0]]), num_clusters=2).sort(dim=0).values
    tensor([[-1.0000,  0.0000],
            [ 0.7000,  0.7000]])

    ```
    """
    # Loading scikit-learn takes longer than the scores that need it not.
    from sklearn.cluster import KMeans

    features = check_features(features, "features", min_images=1)
    num_clusters, seed = check_whole(num_clusters, "num_clusters"), check_seed(seed)
    if num_clusters < 1:
        raise ValueError(f"`num_clusters` must be at least 1, got {num_clusters}.")
    if num_clusters > len(features):
        raise ValueError(
            f"`num_clusters` must be at most the number of images in `features`, {len(features)}, got {num_clusters}."
        )
    order = _order(features)
    size = min(len(features), SAMPLE * num_clusters)
    drawn = np.sort(np.random.default_rng(seed).choice(len(features), size, replace=False))
    sample = features[torch.from_numpy(order[drawn]).to(features.device)]
    rows = unit(sample.float(), "features").cpu().numpy()
    distinct = len(np.unique(_as_bytes(rows)))
    if distinct < num_clusters:
        raise ValueError(
            f"`features` has {distinct} distinct {'image' if distinct == 1 else 'images'}, fewer than the "
            f"{num_clusters} clusters of `num_clusters`; "
            "ask for fewer clusters, or give more images."
        )
    clusters = torch.from_numpy(KMeans(num_clusters, n_init=1, random_state=seed).fit(rows).labels_).long()
    # Not the centers as k-means has them: their last digits depend on which of its threads comes first.
    sums = torch.zeros(num_clusters, rows.shape[1], dtype=torch.float64)
    for part in chunks(*rows.shape):
        sums.index_add_(0, clusters[part], torch.from_numpy(rows[part]).double())
    counts = clusters.bincount(minlength=num_clusters)
    return (sums / counts[:, None]).float().to(features.device)


@torch.no_grad()
def nearest_centroids(features: Tensor, centroids: Tensor) -> Tensor:
    r"""Find the cluster that each image belongs to, that is \\( \arg\min_c \lVert f - \mu_c \rVert \\).

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`): Image embeddings, of any norm but 0; scaled to unit norm.
        centroids (`torch.Tensor` of shape `(clusters, dim)`): What [`fit_centroids`] returned.

    Returns:
        `torch.Tensor` of shape `(batch,)`, int64: Positions in `centroids`.

    Raises:
        TypeError: `features` or `centroids` is not a tensor.
        ValueError: Shapes that do not fit, no centroids, a row of zeros, or a value that is not finite.

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.scores import nearest_centroids
    >>> nearest_centroids(torch.tensor([[3.0, 4.0], [5.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.9]]))
    tensor([1, 0])

    ```
    """
    features = check_features(features, "features")
    centroids = check_features(centroids, "centroids", min_images=1).float()
    check_dimensions(features, centroids.shape[1], "centroids")
    half = centroids.square().sum(dim=1) / 2
    # Made in advance: small results of parts between their large ones keep memory from being used again.
    found = torch.empty(len(features), dtype=torch.int64, device=features.device)
    for rows in chunks(len(features), max(centroids.shape)):
        # Half the squared distances, but for the square of the image itself
        found[rows] = (half - unit(features[rows].float(), "features") @ centroids.T).argmin(dim=1)
    return found


def _order(features: Tensor) -> npt.NDArray[np.int64]:
    """Order images in a way that does not depend on how they come, and hardly on how their embeddings are rounded."""
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(features.shape[1]))
    places = torch.empty(len(features), dtype=torch.float64)
    for rows in chunks(len(features), 2 * features.shape[1]):
        places[rows] = unit(features[rows].float(), "features").cpu().double() @ direction
    return places.numpy().argsort(kind="stable")


def _as_bytes(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.void]:
    """Rows `(images,)` that can be sorted, but not computed with."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()


__all__ = ["fit_centroids", "nearest_centroids"]

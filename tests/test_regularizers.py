"""HEX beside Barlow Twins and VICReg, and in All4One, against those objectives written out here."""

import copy
import math
import pickle

import formulas
import pytest
import torch
from peers import EXACT, assert_close, assert_same, rows
from torch import nn
from torch.autograd import gradcheck
from torch.nn.functional import mse_loss, normalize

from hexssl import HEXLoss, HEXRegularized, cross_info_nce
from hexssl.regularizers import VICREG_WEIGHTS, All4OneLoss, feature_redundancy
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, StepSchedule

B, D = 6, 4
VIEWS = [rows(1, B, D), rows(2, B, D)]


def barlow_twins(z1, z2, lamb=0.005):
    """Zbontar et al. 2021, one element of the cross-correlation at a time."""
    z1, z2 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
    loss = z1.new_zeros(())
    for i in range(z1.shape[1]):
        for j in range(z1.shape[1]):
            c = (z1[:, i] * z2[:, j]).mean()
            loss = loss + ((1 - c) ** 2 if i == j else lamb * c**2)
    return loss


def vicreg(z1, z2, sim_loss_weight=1.0, var_loss_weight=1.0, cov_loss_weight=1.0):
    """Bardes et al. 2022, the variance terms added as in solo-learn."""
    dim = z1.shape[1]
    variance = sum((1 - (z.var(0) + 1e-4).sqrt()).clamp(min=0).mean() for z in (z1, z2))
    covariance = sum((torch.cov(z.T) ** 2).sum() - (z.var(0) ** 2).sum() for z in (z1, z2)) / dim
    return sim_loss_weight * mse_loss(z1, z2) + var_loss_weight * variance + cov_loss_weight * covariance


def hex_formula(z1, z2, threshold, tau=0.1, beta=1.0, tau_plus=0.1):
    z = torch.cat((z1, z2))
    positive, negative = formulas.two_view_masks(len(z))
    losses, _ = formulas.direct(
        formulas.cosines(z, z), positive, negative, None, torch.full((len(z),), threshold).double(),
        torch.tensor(tau, dtype=torch.float64), beta=beta, tau_plus=tau_plus,
        local_weight=1.0, formulation="weighted", positives="sum", denominator="all")
    return losses.mean()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("base", [barlow_twins, vicreg])
def test_weighted_sum_of_the_two_formulas(base, alpha):
    criterion = HEXRegularized(base, alpha, temperature=0.5, threshold=0.2, beta=0.7)
    assert_same(criterion,
                lambda z1, z2: alpha * hex_formula(z1, z2, 0.2, 0.5, 0.7) + (1 - alpha) * base(z1, z2), VIEWS)
    assert criterion.stats.hierarchical_fraction > 0  # or the threshold would not be tested
    assert_close(criterion.terms.hex, hex_formula(*VIEWS, 0.2, 0.5, 0.7), EXACT)
    assert_close(criterion.terms.base, base(*VIEWS), EXACT)
    assert not criterion.terms.hex.requires_grad and not criterion.terms.base.requires_grad


def test_published_vicreg_weights():
    criterion = HEXRegularized(vicreg, threshold=0.2)
    assert_same(lambda z1, z2: criterion(z1, z2, **VICREG_WEIGHTS),
                lambda z1, z2: 0.1 * hex_formula(z1, z2, 0.2) + 0.9 * vicreg(z1, z2, 25, 25, 1), VIEWS)
    # what the documentation says of the published code's factor of 5
    published = 5 * 0.1 * hex_formula(*VIEWS, 0.2) + 0.9 * vicreg(*VIEWS, **VICREG_WEIGHTS)
    assert_close(1.4 * HEXRegularized(vicreg, 5 / 14, threshold=0.2)(*VIEWS, **VICREG_WEIGHTS), published, EXACT)


@pytest.mark.parametrize("base", [barlow_twins, vicreg])
def test_gradcheck(base):
    criterion = HEXRegularized(base, 0.3, temperature=0.5, threshold=0.15)
    assert gradcheck(criterion, [view.clone().requires_grad_() for view in VIEWS])


class Distance(nn.Module):
    """A base loss with something to learn and an argument of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, z1, z2, shift, *, power=2):
        return self.scale * ((z1 - z2 + shift).abs() ** power).mean()


def test_base_loss_module_and_its_arguments():
    base = Distance()
    criterion = HEXRegularized(base, 0.25, threshold=None)
    assert dict(criterion.named_parameters()).keys() == {"base_loss.scale"}
    loss = criterion(*VIEWS, 0.5, power=3)
    loss.backward()
    expected = 2 * ((VIEWS[0] - VIEWS[1] + 0.5).abs() ** 3).mean()
    assert_close(loss.detach(), 0.25 * formulas.nt_xent(torch.cat(VIEWS), 0.1) + 0.75 * expected, EXACT)
    assert_close(base.scale.grad, 0.75 * expected / 2, EXACT)


def test_epoch_statistics_and_copies():
    criterion = HEXRegularized(Distance(), threshold=FixedThreshold(StepSchedule(0.9, 0.1, 0.4, 1)))
    assert criterion.stats is None and criterion.terms is None
    criterion.set_epoch(1)
    loss = criterion(*VIEWS, 0.0)
    assert abs(criterion.stats.threshold - 0.5) <= 1e-15  # the mean of equal numbers below 1, rounded
    loaded = HEXRegularized(Distance(), threshold=FixedThreshold(StepSchedule(0.9, 0.1, 0.4, 1)))
    loaded.load_state_dict(criterion.state_dict())
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)), loaded):
        assert torch.equal(other(*VIEWS, 0.0), loss)
    assert "alpha=0.1" in repr(criterion) and "mse_loss" in repr(HEXRegularized(mse_loss))


def test_half_precision_views():
    z1, z2 = (view.half().requires_grad_() for view in VIEWS)
    loss = HEXRegularized(mse_loss)(z1, z2)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z1.grad.isfinite().all()


def test_nan_of_either_term_is_seen():
    broken = VIEWS[0].clone()
    broken[0, 0] = math.nan
    assert HEXRegularized(lambda z1, z2: z1.new_zeros(()))(broken, VIEWS[1]).isnan()
    assert HEXRegularized(lambda z1, z2: z1.new_tensor(math.nan))(*VIEWS).isnan()


@pytest.mark.parametrize(("error", "match", "arguments"), [
    (TypeError, "base_loss: got 3 of type int", {"base_loss": 3}),
    (TypeError, "base_loss: got .*type", {"base_loss": nn.MSELoss}),
    (ValueError, "alpha: got 1.5.*0, 1", {"alpha": 1.5}),
    (ValueError, "alpha: got nan", {"alpha": math.nan}),
    (TypeError, "alpha: got '1'", {"alpha": "1"}),
    (ValueError, "reduction: got 'none'", {"reduction": "none"}),
    (ValueError, "temperature: got -1", {"temperature": -1.0}),
    (TypeError, "gamma", {"gamma": 1.0}),
])
def test_errors_when_made(error, match, arguments):
    with pytest.raises(error, match=match):
        HEXRegularized(**{"base_loss": mse_loss, **arguments})


@pytest.mark.parametrize(("error", "match", "base", "views"), [
    (ValueError, r"z2: got .*\(5, 4\).*z1.*\(6, 4\)", mse_loss, (VIEWS[0], VIEWS[1][:5])),
    (ValueError, "z2: got .*float32.*float64", mse_loss, (VIEWS[0], VIEWS[1].float())),
    (ValueError, "z1: got ", mse_loss, (VIEWS[0][0], VIEWS[1])),
    (TypeError, "z2: got None", mse_loss, (VIEWS[0], None)),
    (ValueError, r"base_loss: returned .*\(6,\)", lambda z1, z2: (z1 - z2).sum(1), VIEWS),
    (ValueError, r"base_loss: returned .*\(1,\)", lambda z1, z2: (z1 - z2).sum().view(1), VIEWS),
    (TypeError, "base_loss: returned 0.0 of type float", lambda z1, z2: 0.0, VIEWS),
    (TypeError, "base_loss: returned None", lambda z1, z2: None, VIEWS),
])
def test_errors_when_called(error, match, base, views):
    with pytest.raises(error, match=match):
        HEXRegularized(base)(*views)


def all4one(neighbours, predictions, centroids, shifted, projections, momentum, contrast):
    """The sum as solo-learn's and the published code form it; the roots are roots here."""
    on, off, dim = 0, 0, projections[0].shape[1]
    for one in (0, 1):
        c = normalize(momentum[one], dim=0).T @ normalize(projections[1 - one], dim=0)
        on = on + ((c.diagonal() - 1) ** 2).mean() / 2
        off = off + ((c**2).sum() - (c.diagonal() ** 2).sum()) / (dim * (dim - 1)) / 2
    feature = 10 * (on.sqrt() / 2 + off.sqrt() / 2)
    neighbour = contrast(neighbours[0], predictions[1], 0.2) / 2 + contrast(neighbours[1], predictions[0], 0.2) / 2
    centroid = contrast(centroids[0], shifted[1], 0.1) / 2 + contrast(centroids[1], shifted[0], 0.1) / 2
    return neighbour / 2 + centroid / 2 + feature / 2


SIX = [rows(seed, 2, B, D) for seed in range(6)]


@pytest.mark.parametrize(("threshold", "contrast"), [
    (None, lambda a, b, tau: formulas.nt_xent(torch.cat((a, b)), tau)),
    (0.2, lambda a, b, tau: hex_formula(a, b, 0.2, tau)),
])
def test_all4one(threshold, contrast):
    criterion = All4OneLoss(temperature=0.2, threshold=threshold)
    assert_same(criterion, lambda *six: all4one(*six, contrast), SIX)
    pairs = [tuple(x) for x in SIX]
    assert torch.equal(criterion(*pairs), criterion(*SIX))


def test_all4one_with_the_other_librarys_contrast():
    """The term alone goes with any contrast: here InfoNCE over the batch, which All4One has without HEX."""
    (n0, n1), (p0, p1), (c0, c1), (s0, s1) = SIX[:4]
    neighbour = (cross_info_nce(n0, p1, temperature=0.2) + cross_info_nce(n1, p0, temperature=0.2)) / 2
    centroid = (cross_info_nce(c0, s1, temperature=0.1) + cross_info_nce(c1, s0, temperature=0.1)) / 2
    whole = all4one(*SIX, contrast=formulas.info_nce)
    assert_close((neighbour + centroid + 10 * feature_redundancy(SIX[4], SIX[5])) / 2, whole, EXACT)


def test_redundancy_of_equal_views_has_no_nan():
    same = [torch.eye(4, dtype=torch.float64).requires_grad_() for _ in range(4)]
    loss = feature_redundancy((same[0], same[1]), (same[2], same[3]))
    loss.backward()
    assert loss == 0 and all(torch.equal(x.grad, torch.zeros_like(x)) for x in same)


def test_all4one_epoch_thresholds_and_errors():
    threshold = AdaptiveThreshold(0.5, warmup=1, momentum=0.5)
    criterion = All4OneLoss(temperature=0.2, threshold=threshold)
    assert criterion.centroid_contrast.threshold is not threshold is criterion.neighbour_contrast.threshold
    with pytest.raises(ValueError, match="set_epoch"):
        criterion(*SIX)
    for epoch, finite in ((1, False), (2, True)):
        criterion.set_epoch(epoch)
        criterion(*SIX)
        for contrast in (criterion.neighbour_contrast, criterion.centroid_contrast):
            assert isinstance(contrast, HEXLoss) and contrast.stats.threshold.isfinite() == finite
    with pytest.raises(ValueError, match="reduction"):
        All4OneLoss(reduction="none")
    with pytest.raises(ValueError, match=r"momentum_projections\[1\]: got"):
        criterion(*SIX[:5], (SIX[5][0], SIX[5][1][:3]))
    with pytest.raises(ValueError, match="2 columns or more"):
        feature_redundancy(SIX[4][:, :, :1], SIX[5][:, :, :1])


def test_mixed_dtypes_under_autocast():
    """Compared in the widest of them, as by the losses; nothing is multiplied in half precision."""
    z1, z2, m1, m2 = torch.randn(4, 8, 4)
    criterion = HEXRegularized(lambda a, b: (a - b).square().mean(), threshold=0.5)
    expected = criterion(z1, z2.bfloat16().float())
    whole = feature_redundancy((z1, z2.bfloat16().float()), (m1, m2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(criterion(z1, z2.bfloat16()), expected)
        assert torch.equal(feature_redundancy((z1, z2.bfloat16()), (m1, m2)), whole)
        halves = [view.bfloat16() for view in (z1, z2, m1, m2)]
        whole = feature_redundancy([view.float() for view in halves[:2]], [view.float() for view in halves[2:]])
        assert torch.equal(feature_redundancy(halves[:2], halves[2:]), whole)
        assert All4OneLoss()(*[(z1, z2.bfloat16())] * 6).isfinite()
    with pytest.raises(ValueError, match="z2: got"):
        criterion(z1, z2.bfloat16())


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("wrong", [torch.randn(3, 8, 4), torch.tensor(1.0), None])
def test_all4one_takes_two_views(place, wrong):
    names = ("neighbours", "predictions", "centroids", "shifted", "projections", "momentum_projections")
    views: list = [torch.randn(2, 8, 4)] * 6
    views[place] = wrong
    with pytest.raises((TypeError, ValueError), match=f"^{names[place]}: got "):
        All4OneLoss()(*views)

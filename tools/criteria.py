"""The criteria of exact and production claims that are neither a tolerance of 1e-6 nor an order of convergence.

Claim -> its criterion, as the lesson writes it, and why it is that. A criterion that changes must change here too.
"""

CHAINS = "a distance from an order of convergence, as chains of this length show it"
PARAMETERS = "half a unit of the second place of a count in millions"
CHANCE = "in units of the 99 % level of relabelled samples: 1 is what chance reaches"
COUNT = "a count of exceptions: less than one half is none"
FIXED_BY_THE_CLAIM = "the number is the statement's own"

CRITERIA = {
    "prior-term-vanishes": ("between (1e-06, 0.0001)", "of the order of 1e-5: within a factor of ten"),
    "lsimple-plays-down-little-noise": ("above 0.11", "more than a tenth, which is what equal weights give"),
    "variance-single-x-leaves-range": ("above 1", "a fraction of beta: above 1 is beyond it"),
    "steps-telescope": ("below 0.5", COUNT),
    "heun-angle-at-pure-noise": ("between (0.5, 2)", "a ratio of errors that does not grow: within a factor of two"),
    "shifts-differ-at-25": ("above 1.1", FIXED_BY_THE_CLAIM),
    "s1-samples-conditional": ("below 1.0", CHANCE),
    "s1-samples-conditional-digits": ("below 1.0", CHANCE),
    "s3-misses-the-tilted-density": ("above 1.0", CHANCE),
    "guided-sde-samples-conditional": ("below 1.0", CHANCE),
    "ascent-loses-the-spread": ("above 1.0", CHANCE),
    "prior-then-decoder-samples-the-data": ("below 1.0", CHANCE),
    "karlo-parameters": ("below 0.005", PARAMETERS),
    "exchanged-class-matches-quantiles": ("below 0.2", CHAINS),
    "guided-loss-grows-with-the-square": ("below 0.2", CHAINS),
    "adm-classifier-parameters": ("below 0.005", PARAMETERS),
    "adm-64-parameters": ("below 0.005", PARAMETERS),
    "weights-cost-a-divergence-not-the-bound": ("below 4.0", FIXED_BY_THE_CLAIM),
    "sharpening-is-the-samplers": ("above 1.5", FIXED_BY_THE_CLAIM),
    "plain-levels-lie-as-close-as-the-bound": ("between (1.9, 2.1)", "second order, give or take a tenth"),
    "right-score-samples-the-tilted-density": ("below 0.01", "what the steps of the solver leave of a distance"),
    "clean-half-is-closer": ("below 0.5", FIXED_BY_THE_CLAIM),
    "edm2-interval-is-steps-17-to-22": ("below 0.5", COUNT),
    "noise-aware-critic-samples-the-conditional": ("below 1.0", CHANCE),
    "glide-clip-parameters": ("below 0.005", PARAMETERS),
    "narrow-starts-drown": ("below 0.1", "a share: less than a tenth is left"),
    "reading-order-tells": ("below 5 / len(S) ** 0.5", "five standard errors of an average"),
    "glide-released-parameters": ("below 0.005", PARAMETERS),
    "resampling-closes-most-of-the-gap": ("below 0.1", FIXED_BY_THE_CLAIM),
    "four-channels-are-all-that-is-added": ("below 0.5", COUNT),
    "enlargers-as-printed-are-alike": ("below 10.0", FIXED_BY_THE_CLAIM),
    "stable-diffusion-parameters": ("below 0.5", COUNT),
    "upsamplers-count-as-published": ("below 0.006", PARAMETERS + ", and its rounding"),
}

# SPDX-License-Identifier: Apache-2.0
"""Mistakes in commands, each with the exit status and the words that answer it."""

CONFIG = "--config=configs/score_sde/digits.py:debug"
ENERGIES = "--config=configs/recovery_ebm/digits.py:debug"
LADDER = "--config=configs/ncsnv2/digits.py:debug"
FLOW = "--config=configs/fd_score_matching/nice_digits.py:debug"
EXPERT = "--config=configs/density_imitation/pendulum.py:expert,debug"
NEW = "--workdir={tmp}/new"
RUN = "--workdir={tmp}/run"

# A value in the debug config of the digits -> what the line must say.
OVERRIDES = [
    # Misspelt names.
    ("batch_sise=8", "no key 'batch_sise'; did you mean 'batch_size'?"),
    ("lerning_rate=1", "no key 'lerning_rate'; did you mean 'learning_rate'?"),
    ("model.nf=8", "no key 'model.nf'"),
    ("steps=8", "no key 'steps'; did you mean 'num_corrector_steps' or 'num_"),
    ("system=score_sd", "unknown system 'score_sd': did you mean 'score_sde'?"),
    ("dataset=digit", "unknown dataset 'digit': did you mean 'digits'?"),
    ("sde=vpp", "unknown sde 'vpp': did you mean 'vp'?"),
    ("objective=denoisng", "unknown objective 'denoisng': did you mean 'denoising'?"),
    ("reduction=sum", "unknown reduction 'sum'"),
    ("model=ncsn++", "unknown model 'ncsn++': did you mean 'ncsnpp'?"),
    ("dtype=float16", "unknown dtype 'float16': did you mean 'bfloat16'?"),
    ("embedding_type=fourrier", "unknown embedding_type 'fourrier': did you mean 'fourier'?"),
    ("resblock_type=bigan", "did you mean 'biggan'?"),
    ("progressive=skip", "unknown progressive 'skip'"),
    ("progressive_input=residul", "did you mean 'residual'?"),
    ("predictor=eulermaruyama", "unknown predictor 'eulermaruyama': did you mean 'euler_maruyama'"),
    ("corrector=langevn", "unknown corrector 'langevn': did you mean 'langevin'?"),
    ("best_mode=minimum", "'minimum'"),
    # Wrong types.
    ("batch_size=many", "batch_size needs a value of type int, as --config.batch_size=16"),
    ("batch_size=1.5", "got '1.5'"),
    ("learning_rate=fast", "learning_rate needs a value of type float"),
    ("centered=perhaps", "centered needs a value of type bool"),
    ("ch_mult=(1,2", "ch_mult needs a value of type tuple"),
    ("ch_mult=(1,'two')", "ch_mult needs a whole number >= 1 for each level; got (1, 'two')"),
    # Impossible values.
    ("batch_size=15", "batch_size=15 does not divide evenly over 2 device(s)"),
    ("batch_size=0", "batch_size=0"),
    ("accumulation=3", "accumulation=3"),
    ("num_train_steps=0", "num_train_steps needs to be at least 1; got 0"),
    ("num_train_steps=45", "the nearest is 40 or 50"),
    ("save_every=7", "save_every=7 needs to be a multiple of num_steps_per_call=10"),
    ("learning_rate=nan", "learning_rate needs to be a positive number; got nan"),
    ("learning_rate=-0.1", "learning_rate needs to be a positive number; got -0.1"),
    ("learning_rate=inf", "got inf"),
    ("ema_rate=1.0", "ema_rate needs to lie in [0, 1); got 1.0"),
    ("ema_rate=-0.1", "got -0.1"),
    ("beta1=1.0", "beta1 needs to lie in [0, 1); got 1.0"),
    ("warmup=-1", "warmup needs to be at least 0"),
    ("grad_clip=-1.0", "grad_clip needs to be positive, or 0 for none; got -1.0"),
    ("dropout=1.0", "dropout needs to lie in [0, 1); got 1.0"),
    ("dropout=nan", "dropout needs to lie in [0, 1); got nan"),
    ("nf=0", "nf needs to be at least 1; got 0"),
    ("ch_mult=()", "ch_mult needs a whole number >= 1 for each level; got ()"),
    ("image_size=7", "multiple of 2; got 7 x 7"),
    ("image_size=0", "image_size needs to be at least 1; got 0"),
    ("attn_resolutions=(5,)", "attn_resolutions needs sizes that the network reaches, [8, 4]"),
    ("beta_min=30.0", "VPSDE needs 0 <= beta_min < beta_max; got beta_min=30.0"),
    ("num_scales=1", "num_scales needs to be at least 2; got 1"),
    ("num_sampling_steps=1", "num_sampling_steps needs to be at least 2; got 1"),
    ("snr=0.0", "snr needs to be a positive number; got 0.0"),
    ("num_corrector_steps=0", "num_corrector_steps needs to be at least 1; got 0"),
    ("rtol=0.0", "rtol needs to lie between 0 and 1; got 0.0"),
    ("eval_examples=0", "eval_examples needs to be at least 1; got 0"),
    ("objective=smld", "objective 'smld' needs sde='ve'; got 'vp'"),
    ("best_metric=fid", "unknown best_metric 'fid': known: bits_per_dim, loss"),
    ("best_metric=frechet", "unknown best_metric 'frechet': known: bits_per_dim, loss"),
    ("eval_matmul_precision=higest", "unknown eval_matmul_precision 'higest': did you mean"),
    ("eval_frechet_samples=1", "eval_frechet_samples needs to be at least 2, or 0; got 1"),
]

# Name -> command, arguments, status, what the line must say.
CASES = {
    "a ladder too coarse for one draw a level": (
        "train", [ENERGIES, NEW, "--config.num_chain_steps=0"], 2,
        "num_steps=0, one normal draw a level, needs levels whose sigma is at most 0.2",
    ),
    "steps beyond a conditional's curvature": (
        "train", [ENERGIES, NEW, "--config.step_scale=0.1"], 2,
        "step_scale needs to be below 0.0445",
    ),
    "empty workdir": ("train", [CONFIG, "--workdir="], 2, "--workdir is empty"),
    "sigma order": (
        "train", ["--config=configs/score_sde/digits.py:ve,debug", NEW, "--config.sigma_min=9.0"],
        2, "VESDE needs 0 < sigma_min < sigma_max; got sigma_min=9.0, sigma_max=5.0",
    ),
    "label 0 has no logarithm": (
        "train", ["--config=configs/score_sde/digits.py:ve,debug", NEW, "--config.objective=smld"],
        2, "take embedding_type 'positional'",
    ),
    "sub-VP has no ancestral sampling": (
        "train",
        ["--config=configs/score_sde/digits.py:subvp,debug", NEW, "--config.predictor=ancestral"],
        2, "ancestral",
    ),
    "features": (
        "train", [CONFIG, NEW, "--config.eval_frechet_samples=9", "--config.eval_features=digit"],
        2, "unknown eval_features 'digit': did you mean 'digits'?",
    ),
    "features of a file that is not there": (
        "train", [CONFIG, NEW, "--config.eval_frechet_samples=9", "--config.eval_features=x.pth"],
        2, "x.pth is not there: get the weights of FID's InceptionV3",
    ),
    "chain too short": (
        "train",
        [CONFIG, NEW, "--config.predictor=reverse_diffusion", "--config.num_sampling_steps=10"],
        2, "num_steps=10",
    ),
    "variant": ("train", [CONFIG + ",vx", NEW], 2, "unknown variant 'vx': did you mean 'vp'?"),
    "no config": ("train", [NEW], 2, "--config is missing"),
    "a value and no config": (
        "train", [NEW, "--config.batch_size=8"], 2, "--config is missing, such as --config=",
    ),
    "a value before the config": (
        "train", ["--config.batch_size=8", CONFIG, NEW], 2,
        "--config.batch_size needs to stand after --config=configs/score_sde/digits.py:debug",
    ),
    "config file": (
        "train", ["--config=configs/score_sde/digit.py", NEW],
        2, "no such file; did you mean 'configs/score_sde/digits.py'?",
    ),
    "not a config": ("train", ["--config={tmp}/number.py", NEW], 2, "needs to return a ConfigDict"),
    "broken config": ("train", ["--config={tmp}/broken.py", NEW], 2, "SyntaxError"),
    "poor config": ("train", ["--config={tmp}/poor.py", NEW], 2, "the config lacks seed"),
    "no workdir": ("train", [CONFIG], 2, "--workdir is missing"),
    "flag": (
        "train", [CONFIG, "--wrkdir=x", NEW], 2, "unknown flag --wrkdir; did you mean 'workdir'?",
    ),
    "argument": ("train", [CONFIG, NEW, "batch_size=3"], 2, "unexpected argument 'batch_size=3'"),
    "another config": (
        "train", [CONFIG, RUN, "--config.nf=16"], 2, "holds a run with nf=8, the config has nf=16",
    ),
    "another variant": (
        "train", ["--config=configs/score_sde/digits.py:ve,debug", RUN], 2,
        "holds a run with sde='vp', the config has sde='ve' (others that differ: ",
    ),
    "checkpoints without config": ("train", [CONFIG, "--workdir={tmp}/nameless"], 2, "config.json"),
    "workdir is a file": ("train", [CONFIG, "--workdir={tmp}/file"], 1, "{tmp}/file"),
    "workdir of another cloud": (
        "train", [CONFIG, "--workdir=s3://bucket/run"], 2,
        "s3://bucket/run needs to be a local path or gs://bucket/name",
    ),
    "workdir without a bucket": ("sample", ["--workdir=gs:///run"], 2, "names no bucket"),
    "workdir below a file": ("train", [CONFIG, "--workdir={tmp}/file/x"], 1, "Not a directory"),
    "missing data": (
        "train",
        [CONFIG, NEW, "--config.dataset=cifar10", "--config.data_dir={tmp}/empty"],
        2, "tfds build cifar10 --file_format=array_record --data_dir={tmp}/empty",
    ),
    "sample: no run": ("sample", ["--workdir={tmp}/nowhere"], 2, "{tmp}/nowhere"),
    "sample: foreign": ("sample", ["--workdir={tmp}/foreign"], 2, "no config.json"),
    "sample: garbled": ("sample", ["--workdir={tmp}/garbled"], 2, "not a JSON file"),
    "sample: another's config": ("sample", ["--workdir={tmp}/other"], 2, "unknown system None"),
    "sample: poor config": ("sample", ["--workdir={tmp}/poor"], 2, "the config lacks"),
    "sample: no checkpoint": ("sample", [RUN], 2, "no checkpoint"),
    "sample: none": ("sample", [RUN, "--num=0"], 2, "--num needs to be at least 1; got 0"),
    "sample: out below a file": (
        "sample", [RUN, "--out={tmp}/file/x/y"], 2, "--out={tmp}/file/x/y: {tmp}/file is not",
    ),
    "likelihood: seed": ("likelihood", [RUN, "--seed=-1"], 2, "--seed=-1"),
    "sample: half of one": ("sample", [RUN, "--num=0.5"], 2, "--num=0.5"),
    "sample: sampler": (
        "sample", [RUN, "--sampler=pcc"], 2, "unknown sampler 'pcc': did you mean 'pc'?",
    ),
    "sample: steps": (
        "sample", [RUN, "--num_steps=1"], 2, "'pc' needs num_steps of at least 2; got 1",
    ),
    "sample: steps by another name": (
        "sample", [RUN, "--steps=9"], 2, "unknown flag --steps; did you mean 'num_steps'?",
    ),
    "sample: steps of the ODE": (
        "sample", [RUN, "--sampler=ode", "--num_steps=9"], 2, "got num_steps=9",
    ),
    "sample: too few for the chain": (
        "sample", ["--workdir={tmp}/ancestral", "--num_steps=9"], 2,
        "needs its last beta below 1; num_steps=9 gives",
    ),
    "sample: both": (
        "sample", [RUN, "--num_steps=9", "--nfe=9"], 2,
        "give num_steps or nfe, not both; got 9 and 9",
    ),
    "sample: nfe of Heun": (
        "sample", [RUN, "--sampler=heun", "--nfe=2"], 2, "'heun' needs nfe of at least 3; got 2",
    ),
    "sample: nfe of DPM-Solver++": (
        "sample", [RUN, "--sampler=dpm++", "--nfe=2"], 2, "'dpm++' needs nfe of at least 3; got 2",
    ),
    "sample: nfe of the ODE": ("sample", [RUN, "--sampler=ode", "--nfe=9"], 2, "got nfe=9"),
    "sample: few steps": ("sample", [RUN, "--sampler=huen"], 2, "did you mean 'heun'?"),
    "sample: nfe below none": ("sample", [RUN, "--nfe=-1"], 2, "--nfe=-1"),
    "likelihood: split": (
        "likelihood", [RUN, "--split=tset"], 2, "unknown split 'tset': did you mean 'test'?",
    ),
    "likelihood: repeats": (
        "likelihood", [RUN, "--repeats=0"], 2, "--repeats needs to be at least 1; got 0",
    ),
    "likelihood: two sources": (
        "likelihood", [RUN, "--images={tmp}", "--split=test"], 2,
        "--images takes the place of --split",
    ),
    "likelihood: no pictures": (
        "likelihood", ["--workdir={tmp}/unread", "--images={tmp}/empty"], 2,
        "{tmp}/empty has no pictures (.png",
    ),
    "likelihood: pictures of other levels": (
        "likelihood", [RUN, "--images={tmp}"], 2, "data set digits has 17 grey levels",
    ),
    "likelihood: pictures need no data set": (
        "likelihood", ["--workdir={tmp}/unread", "--images={tmp}/pictures"], 2, "no checkpoint",
    ),
    "likelihood: num": ("likelihood", [RUN, "--num=-1"], 2, "--num=-1"),
    "sample: alone": (
        "sample", [RUN, "--distributed"], 2, "--distributed finds no other processes: start",
    ),
    "evaluate: metric": (
        "evaluate", [RUN, "--metrics=los"], 2, "unknown metric 'los': did you mean 'loss'?",
    ),
    "evaluate: no Inception": (
        "evaluate", [RUN, "--metrics=fid"], 2, "inception is missing: the weights of FID's",
    ),
    "evaluate: Inception elsewhere": (
        "evaluate", [RUN, "--metrics=fid", "--inception={tmp}/none.pth"], 2,
        "{tmp}/none.pth is not there: get the weights of FID's InceptionV3",
    ),
    "evaluate: moments for KID": (
        "evaluate", [RUN, "--metrics=kid", "--inception=x", "--reference=y"], 2,
        "kid needs real images, not a reference of statistics",
    ),
    "evaluate: no reference": (
        "evaluate", [RUN, "--metrics=fid", "--inception=x", "--reference={tmp}/none.npz"], 2,
        "no reference statistics at {tmp}/none.npz",
    ),
    "evaluate: another network's reference": (
        "evaluate", [RUN, "--metrics=fid", "--inception=x", "--reference={tmp}/small.npz"], 2,
        "{tmp}/small.npz has 64 features per image, InceptionV3 has 2048",
    ),
    "evaluate: a reference needs no data set": (
        "evaluate",
        [
            "--workdir={tmp}/unread", "--metrics=fid", "--inception={tmp}/none.pth",
            "--reference={tmp}/inception.npz",
        ],
        2, "{tmp}/none.pth is not there: get the weights",
    ),
    "evaluate: samples": ("evaluate", [RUN, "--num_samples=3"], 2, "--num_samples=3"),
    "evaluate: sampler": (
        "evaluate", [RUN, "--metrics=fid", "--inception=x", "--sampler=hein"], 2,
        "unknown sampler 'hein': did you mean 'heun'?",
    ),
    "sample: label alone": (
        "sample", [RUN, "--label=3"], 2, "--classifier and --label need each other",
    ),
    "sample: guidance": ("sample", [RUN, "--guidance=-1"], 2, "--guidance=-1"),
    "sample: no classifier": (
        "sample", [RUN, "--classifier={tmp}/nowhere", "--label=3"], 2, "{tmp}/nowhere",
    ),
    "sample: no classifier's run": (
        "sample", [RUN, "--classifier={tmp}/run", "--label=3"], 2,
        "'score_sde', model 'ncsnpp', cannot guide samples to a class; noisy_classifier can",
    ),
    "complete: task": (
        "complete", [RUN, "--task=colourise"], 2,
        "unknown task 'colourise': did you mean 'colorize'?",
    ),
    "complete: grey model": (
        "complete", [RUN, "--task=colorize"], 2, "needs a model of colour images",
    ),
    "complete: factor": (
        "complete", [RUN, "--task=super_resolution", "--factor=3"], 2,
        "factor needs to be 2 or more and to divide (8, 8); got 3",
    ),
    "complete: no mask": ("complete", [RUN, "--mask={tmp}/none.png"], 2, "{tmp}/none.png"),
    "complete: mask is no image": (
        "complete", [RUN, "--mask={tmp}/number.py"], 2, "{tmp}/number.py is not a readable picture",
    ),
    "complete: a mask of one level": (
        "complete", [RUN, "--mask={tmp}/pictures/black.png"], 2,
        "black.png needs two levels, dark where pixels are made up and light where they are known; "
        "got 1: 0.",
    ),
    "complete: mask of another size": (
        "complete", [RUN, "--mask={tmp}/mask.png"], 2,
        "mask needs the images' (8, 8) pixels; got (2, 3)",
    ),
    "complete: steps": (
        "complete", [RUN, "--num_steps=1"], 2, "num_sampling_steps needs to be at least 2; got 1",
    ),
    "inverse: the former name of complete": (
        "inverse", [RUN, "--task=colourise"], 2,
        "unknown task 'colourise': did you mean 'colorize'?",
    ),
    "sample: pictures to segment": (
        "sample", [RUN, "--images={tmp}", "--damaged=skip"], 2,
        "--images and --damaged are flags of launch.segment",
    ),
    "segment: no pictures": ("segment", [RUN], 2, "--images is missing"),
    "segment: a score model": (
        "segment", [RUN, "--images={tmp}"], 2,
        "the system 'score_sde', model 'ncsnpp', cannot segment pictures; bionet can",
    ),
    "complete: no checkpoint": ("complete", [RUN], 2, "no checkpoint"),
    "interpolate: one frame": ("interpolate", [RUN, "--num_frames=1"], 2, "--num_frames=1"),
    "interpolate: too many": (
        "interpolate", [RUN, "--num=450"], 2, "--num needs to be at most 449 pairs; got 450",
    ),
    "evaluate: neither run nor config": (
        "evaluate", ["--metrics=ladder"], 2, "give either --workdir, a run, or --config",
    ),
    "evaluate: run and config": (
        "evaluate", [RUN, LADDER], 2, "give either --workdir, a run, or --config",
    ),
    "evaluate: metric of data": (
        "evaluate", [LADDER, "--metrics=lader"], 2,
        "unknown metric 'lader': did you mean 'ladder'",
    ),
    "evaluate: no metric of data": (
        "evaluate", [CONFIG, "--metrics=ladder"], 2,
        "the system 'score_sde', model 'ncsnpp', cannot describe data before training; "
        "classifier_mistakes, ncsnv2 can",
    ),
    "evaluate: no data": (
        "evaluate",
        [LADDER, "--metrics=ladder", "--config.dataset=cifar10", "--config.data_dir={tmp}/empty"],
        2, "tfds build cifar10",
    ),
    "evaluate: a damaged first stage": (
        "evaluate",
        ["--config=configs/classifier_mistakes/digits.py:detector,debug",
         "--config.classifier={tmp}/damaged", "--metrics=failures"],
        1, "no sound checkpoint in {tmp}/damaged/checkpoints: damaged checkpoint 20",
    ),
    "ladder upside down": (
        "train", [LADDER, NEW, "--config.sigma_max=0.001"], 2,
        "0 < sigma_min < sigma_max; got sigma_min=0.01, sigma_max=0.001",
    ),
    "one level": ("train", [LADDER, NEW, "--config.num_scales=1"], 2, "num_scales >= 2; got 1"),
    "steps that diverge": (
        "train", [LADDER, NEW, "--config.step_size=0.01"], 2, "or it diverges; got 0.01",
    ),
    "evaluate: no run": ("evaluate", ["--workdir={tmp}/nowhere"], 2, "{tmp}/nowhere"),
}  # fmt: skip
CASES |= {
    f"flow: {override}": ("train", [FLOW, NEW, f"--config.{override}"], 2, words)
    for override, words in [
        ("eps=0.0", "eps needs to be a positive number; got 0.0"),
        ("eps=-0.1", "eps needs to be a positive number; got -0.1"),
        ("eps=1e-9", "eps needs more than 9.5e-07, the rounding of 64 coordinates"),
    ]
}
CASES |= {
    override: ("train", [CONFIG, NEW, f"--config.{override}"], 2, words)
    for override, words in OVERRIDES
}
NEEDS_MOUNT = {
    "full disk": ("train", [CONFIG, "--workdir={tmp}/full/run"], 1, "No space left on device"),
    "read-only disk": ("train", [CONFIG, "--workdir={tmp}/frozen/run"], 1, "Read-only file system"),
}

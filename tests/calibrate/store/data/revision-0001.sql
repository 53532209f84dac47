BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE scope_environment (
	id INTEGER NOT NULL, 
	digest VARCHAR(16) NOT NULL, 
	hardware JSON NOT NULL, 
	versions JSON NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
INSERT INTO "scope_environment" VALUES(1,'2d8f6fdeb968d6ea','{"system": "Linux", "machine": "x86_64", "processor": "AMD EPYC", "cpu_count": 2, "threads": 1, "device": "cpu"}','{"python": "3.11.7", "scope-calibrate": "0.1.0", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "transformers": "5.23.0", "optuna": "5.0.0", "numpy": "2.4.6", "opencv-python-headless": "5.0.0.93", "pytorch-msssim": "1.0.0"}');
CREATE TABLE scope_generation (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	environment_id INTEGER NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	trial_number INTEGER, 
	prompt TEXT NOT NULL, 
	prompt_digest VARCHAR(16) NOT NULL, 
	seed INTEGER NOT NULL, 
	policy JSON, 
	policy_digest VARCHAR(16) NOT NULL, 
	settings JSON NOT NULL, 
	evaluations INTEGER, 
	stock_evaluations INTEGER, 
	seconds_denoise DOUBLE, 
	seconds_decode DOUBLE, 
	seconds_end_to_end DOUBLE, 
	stock_seconds_denoise DOUBLE, 
	metrics JSON, 
	state VARCHAR(10) NOT NULL, 
	reason TEXT, 
	started DATETIME NOT NULL, 
	finished DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(study_id) REFERENCES scope_study (id) ON DELETE CASCADE, 
	FOREIGN KEY(environment_id) REFERENCES scope_environment (id)
);
INSERT INTO "scope_generation" VALUES(1,1,1,'stock',NULL,'a red circle moving left','8158b9ab2a12555c',1,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,2.4514989470008003991e+00,9.41992541000217897817e-01,3.78211052900223876349e+00,2.4514989470008003991e+00,'null','complete',NULL,'2026-11-22 23:41:37.539228','2026-11-22 23:41:44.302527');
INSERT INTO "scope_generation" VALUES(2,1,1,'exact',NULL,'a red circle moving left','8158b9ab2a12555c',1,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,3.00104736399953253567e+00,9.41992541000217897817e-01,4.33165894600097090005e+00,2.4514989470008003991e+00,'{"max_abs_diff": 1.430511474609375e-06}','complete',NULL,'2026-11-22 23:41:37.539228','2026-11-22 23:41:44.302527');
INSERT INTO "scope_generation" VALUES(3,1,1,'stock',NULL,'a blue square moving right','f34e5b288641351c',2,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,2.59026034700036689173e+00,9.94955471000139368698e-01,3.75519536100182449445e+00,2.59026034700036689173e+00,'null','complete',NULL,'2026-11-22 23:41:44.639901','2026-11-22 23:41:51.383175');
INSERT INTO "scope_generation" VALUES(4,1,1,'exact',NULL,'a blue square moving right','f34e5b288641351c',2,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,2.74154822599848557729e+00,9.94955471000139368698e-01,3.90648323999994318e+00,2.59026034700036689173e+00,'{"max_abs_diff": 9.5367431640625e-07}','complete',NULL,'2026-11-22 23:41:44.639901','2026-11-22 23:41:51.383175');
INSERT INTO "scope_generation" VALUES(5,1,1,'candidate',0,'a red circle moving left','8158b9ab2a12555c',1,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 3, "order": 1, "warmup": 4, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e35d96eb1727e97e','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',42,72,1.66837572799886402208e+00,1.08028171600017230957e+00,3.13727648500025679823e+00,2.4514989470008003991e+00,'{"psnr_db": 68.03050808323324, "psnr_worst_frame_db": 40.2143937331223, "ssim": 0.9887447953224182, "temporal_psnr_db": 46.93205420128848, "flicker": 0.1329566378154318, "motion_error_px": 0.19960075616836548}','complete',NULL,'2026-11-22 23:41:53.070503','2026-11-22 23:41:56.139452');
INSERT INTO "scope_generation" VALUES(6,1,1,'candidate',0,'a blue square moving right','f34e5b288641351c',2,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 3, "order": 1, "warmup": 4, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e35d96eb1727e97e','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',42,72,1.81320008599868742749e+00,2.17337132399916299618e+00,4.15655095299916865769e+00,2.59026034700036689173e+00,'{"psnr_db": 70.71136517750094, "psnr_worst_frame_db": 38.84270980076041, "ssim": 0.985759973526001, "temporal_psnr_db": 42.14438584076785, "flicker": 0.11903978361569863, "motion_error_px": 0.15702901780605316}','complete',NULL,'2026-11-22 23:41:56.222632','2026-11-22 23:42:01.735923');
INSERT INTO "scope_generation" VALUES(7,1,1,'candidate',1,'a red circle moving left','8158b9ab2a12555c',1,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 3, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e92d9fb054fad7f9','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',36,72,1.06286243800004740476e+01,3.63589291500102262943e+00,1.46531363360027171442e+01,2.4514989470008003991e+00,'{"psnr_db": 42.26936409046993, "psnr_worst_frame_db": 36.32612890365923, "ssim": 0.9479105472564697, "temporal_psnr_db": 37.731210216597944, "flicker": 0.3009154520551251, "motion_error_px": 0.5408629775047302}','complete',NULL,'2026-11-22 23:42:09.968910','2026-11-22 23:42:24.931373');
INSERT INTO "scope_generation" VALUES(8,1,1,'candidate',1,'a blue square moving right','f34e5b288641351c',2,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 3, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e92d9fb054fad7f9','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',36,72,1.96685265300038736313e+00,1.07694349600024,3.21377569200194557197e+00,2.59026034700036689173e+00,'{"psnr_db": 48.16936328373263, "psnr_worst_frame_db": 34.61186409279585, "ssim": 0.9282968640327454, "temporal_psnr_db": 37.18481456241462, "flicker": 0.33266338153608843, "motion_error_px": 0.40740543603897095}','complete',NULL,'2026-11-22 23:42:25.019835','2026-11-22 23:42:28.369016');
INSERT INTO "scope_generation" VALUES(9,1,1,'candidate',2,'a red circle moving left','8158b9ab2a12555c',1,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e1739281a9905805','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,2.01096963300005882047e+00,1.34220519300106388982e+00,3.74179386700234317686e+00,2.4514989470008003991e+00,'{"psnr_db": 41.05646530736967, "psnr_worst_frame_db": 36.49710541596927, "ssim": 0.9393512606620789, "temporal_psnr_db": 36.69766690088098, "flicker": 0.2917939323029738, "motion_error_px": 0.5310630798339844}','complete',NULL,'2026-11-22 23:42:29.787761','2026-11-22 23:42:33.608521');
INSERT INTO "scope_generation" VALUES(10,1,1,'candidate',2,'a blue square moving right','f34e5b288641351c',2,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e1739281a9905805','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,2.72646660700047505088e+00,1.16472954999881039839e+00,4.06117570000060368329e+00,2.59026034700036689173e+00,'{"psnr_db": 44.924298993993446, "psnr_worst_frame_db": 35.858470295288186, "ssim": 0.9402746558189392, "temporal_psnr_db": 37.60041275860607, "flicker": 0.3009044402253343, "motion_error_px": 0.3835752606391907}','complete',NULL,'2026-11-22 23:42:33.797608','2026-11-22 23:42:38.111015');
INSERT INTO "scope_generation" VALUES(11,1,1,'held_out_stock',2,'a green circle moving up','5e393e90adb2ae97',3,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,2.07690198599993891548e+00,1.15518414699909044429e+00,3.40659950400004163384e+00,2.07690198599993891548e+00,NULL,'complete',NULL,'2026-11-22 23:42:38.960582','2026-11-22 23:42:50.670072');
INSERT INTO "scope_generation" VALUES(12,1,1,'held_out_exact',2,'a green circle moving up','5e393e90adb2ae97',3,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,2.04387576500084833241e+00,NULL,NULL,2.07690198599993891548e+00,'{"max_abs_diff": 1.430511474609375e-06}','complete',NULL,'2026-11-22 23:42:38.960582','2026-11-22 23:42:50.670072');
INSERT INTO "scope_generation" VALUES(13,1,1,'held_out_scope',2,'a green circle moving up','5e393e90adb2ae97',3,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e1739281a9905805','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,1.90285919500092859379e+00,3.18334073000005446374e+00,5.2607132960019953316e+00,2.07690198599993891548e+00,'{"psnr_db": 41.670999219991586, "psnr_worst_frame_db": 33.833010266106825, "ssim": 0.930688202381134, "temporal_psnr_db": 36.153233448186114, "flicker": 0.2937373278034214, "motion_error_px": 0.555160403251648}','complete',NULL,'2026-11-22 23:42:38.960582','2026-11-22 23:42:50.670072');
INSERT INTO "scope_generation" VALUES(14,1,1,'held_out_stock',2,'a green square moving down','3b73cffa00d83e97',4,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,2.01641532319990801624e+01,7.08450018999974417965e+00,2.82640557089998765158e+01,2.01641532319990801624e+01,NULL,'complete',NULL,'2026-11-22 23:42:51.114685','2026-11-22 23:43:53.201442');
INSERT INTO "scope_generation" VALUES(15,1,1,'held_out_exact',2,'a green square moving down','3b73cffa00d83e97',4,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,1.33853946039998845658e+01,NULL,NULL,2.01641532319990801624e+01,'{"max_abs_diff": 8.940696716308594e-07}','complete',NULL,'2026-11-22 23:42:51.114685','2026-11-22 23:43:53.201442');
INSERT INTO "scope_generation" VALUES(16,1,1,'held_out_scope',2,'a green square moving down','3b73cffa00d83e97',4,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e1739281a9905805','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,1.11908012929998221805e+01,6.47153982999952859245e+00,1.8677743410000402946e+01,2.01641532319990801624e+01,'{"psnr_db": 40.429028415338585, "psnr_worst_frame_db": 37.03358796749232, "ssim": 0.9446098208427429, "temporal_psnr_db": 36.593692452207904, "flicker": 0.4942342677955504, "motion_error_px": 0.6306672096252441}','complete',NULL,'2026-11-22 23:42:51.114685','2026-11-22 23:43:53.201442');
CREATE TABLE scope_profile (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	trial_number INTEGER NOT NULL, 
	rule VARCHAR(20) NOT NULL, 
	path TEXT NOT NULL, 
	profile JSON NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(study_id) REFERENCES scope_study (id) ON DELETE CASCADE
);
INSERT INTO "scope_profile" VALUES(1,1,2,'fastest','profiles/tiny.json','{"format": "scope-profile", "format_version": 1, "created": "2026-11-22T23:43:54+00:00", "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "settings": {"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}, "model": {"pipeline": "SkyReelsV2DiffusionForcingPipeline", "transformer": "SkyReelsV2Transformer3DModel", "config": "9371754a22d3e2c3", "weights": "235fcfe2f93f3702"}, "evidence": {"speedup_evaluations": 2.4, "speedup_denoise": 1.698612487957901, "speedup_end_to_end": 1.3230032162039387, "psnr_db": 41.05001381766509, "psnr_worst_prompt_db": 40.429028415338585, "psnr_worst_frame_db": 33.833010266106825, "ssim": 0.9376490116119385, "temporal_psnr_db": 36.37346295019701, "flicker": 0.3939857977994859, "motion_error_px": 0.592913806438446, "n": 2, "exact": {"speedup_denoise": 1.4414845735469115, "max_abs_diff": 1.430511474609375e-06}, "worst_prompt": {"prompt": "a green square moving down", "seed": 4, "speedup_evaluations": 2.4, "psnr_db": 40.429028415338585, "psnr_worst_frame_db": 37.03358796749232, "ssim": 0.9446098208427429, "temporal_psnr_db": 36.593692452207904, "flicker": 0.4942342677955504, "motion_error_px": 0.6306672096252441}, "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": 15.0, "safety_margin_db": 1.0}, "missed_floors": {}, "metrics": {"psnr_db": {"mean": 41.05001381766509, "std": 0.6209854023265002, "min": 40.429028415338585, "max": 41.670999219991586, "worst_case": "a green square moving down (seed 4)"}, "psnr_worst_frame_db": {"mean": 35.433299116799574, "std": 1.600288850692749, "min": 33.833010266106825, "max": 37.03358796749232, "worst_case": "a green circle moving up (seed 3)"}, "ssim": {"mean": 0.9376490116119385, "std": 0.006960809230804443, "min": 0.930688202381134, "max": 0.9446098208427429, "worst_case": "a green circle moving up (seed 3)"}, "temporal_psnr_db": {"mean": 36.37346295019701, "std": 0.22022950201089486, "min": 36.153233448186114, "max": 36.593692452207904, "worst_case": "a green circle moving up (seed 3)"}, "flicker": {"mean": 0.3939857977994859, "std": 0.10024846999606452, "min": 0.2937373278034214, "max": 0.4942342677955504, "worst_case": "a green square moving down (seed 4)"}, "motion_error_px": {"mean": 0.592913806438446, "std": 0.037753403186798096, "min": 0.555160403251648, "max": 0.6306672096252441, "worst_case": "a green square moving down (seed 4)"}}, "cases": [{"prompt": "a green circle moving up", "seed": 3, "speedup_evaluations": 2.4, "speedup_denoise": 1.0914638305641555, "speedup_end_to_end": 0.6475546779158196, "exact_speedup_denoise": 1.0161586244940268, "max_abs_diff": 1.430511474609375e-06, "psnr_db": 41.670999219991586, "psnr_worst_frame_db": 33.833010266106825, "ssim": 0.930688202381134, "temporal_psnr_db": 36.153233448186114, "flicker": 0.2937373278034214, "motion_error_px": 0.555160403251648}, {"prompt": "a green square moving down", "seed": 4, "speedup_evaluations": 2.4, "speedup_denoise": 1.801850707921367, "speedup_end_to_end": 1.5132478848524489, "exact_speedup_denoise": 1.5064294948744759, "max_abs_diff": 8.940696716308594e-07, "psnr_db": 40.429028415338585, "psnr_worst_frame_db": 37.03358796749232, "ssim": 0.9446098208427429, "temporal_psnr_db": 36.593692452207904, "flicker": 0.4942342677955504, "motion_error_px": 0.6306672096252441}], "search": {"n": 2, "speedup_evaluations": 2.4, "psnr_db": 42.990382150681555, "psnr_worst_prompt_db": 41.05646530736967, "psnr_worst_frame_db": 35.858470295288186, "ssim": 0.939812958240509, "temporal_psnr_db": 37.14903982974353}, "hardware": {"system": "Linux", "machine": "x86_64", "processor": "AMD EPYC", "cpu_count": 2, "threads": 1, "device": "cpu"}, "versions": {"python": "3.11.7", "scope-calibrate": "0.1.0", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "transformers": "5.23.0", "optuna": "5.0.0", "numpy": "2.4.6", "opencv-python-headless": "5.0.0.93", "pytorch-msssim": "1.0.0"}, "measured": "2026-11-22T23:43:54+00:00"}, "provenance": {"study": "tiny", "study_digest": "d2d413dfbc6eb3ea", "trial": 2, "rule": "fastest", "storage": "sqlite:///tiny.db", "verify": {"model": "../pipe", "model_spec": {"family": "skyreels_v2", "pipeline_class": "SkyReelsV2DiffusionForcingPipeline", "torch_dtype": "float32", "device": "cpu", "threads": 1}, "model_files": "a3a82f2fbd372d75", "generation": {"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "fps": 24, "negative_prompt": "", "max_sequence_length": 16, "overlap_history": null, "addnoise_condition": 0.0, "base_num_frames": 97}, "cases": [{"prompt": "a green circle moving up", "seed": 3}, {"prompt": "a green square moving down", "seed": 4}]}}}','2026-11-22 23:44:21.877471');
CREATE TABLE scope_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "scope_schema" VALUES(1);
CREATE TABLE scope_study (
	id INTEGER NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	yaml_text TEXT NOT NULL, 
	fixed_digest VARCHAR(16) NOT NULL, 
	fixed_parts JSON NOT NULL, 
	settings JSON NOT NULL, 
	model JSON NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "scope_study" VALUES(1,'tiny','budget:
  trials: 3
floors:
  psnr_db: 20.0
  psnr_worst_prompt_db: 15.0
generation:
  ar_step: 2
  causal_block_size: 3
  guidance_scale: 3.0
  height: 16
  max_sequence_length: 16
  num_frames: 33
  num_inference_steps: 8
  width: 16
held_out_cases:
- prompt: a green circle moving up
  seed: 3
- prompt: a green square moving down
  seed: 4
model:
  path: pipe
  threads: 1
name: tiny
search:
  max_skip:
    high: 4
    low: 1
  warmup:
    high: 4
    low: 1
search_cases:
- prompt: a red circle moving left
  seed: 1
- prompt: a blue square moving right
  seed: 2
','d2d413dfbc6eb3ea','{"model": {"path": "pipe", "family": "skyreels_v2", "pipeline_class": "SkyReelsV2DiffusionForcingPipeline", "torch_dtype": "float32", "device": "cpu", "threads": 1}, "generation": {"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "fps": 24, "negative_prompt": "", "max_sequence_length": 16, "overlap_history": null, "addnoise_condition": 0.0, "base_num_frames": 97}, "search_cases": [{"prompt": "a red circle moving left", "seed": 1}, {"prompt": "a blue square moving right", "seed": 2}], "search": {"cache_quantile": {"low": 0.0, "high": 0.4}, "predict_threshold": ["never", "searched"], "predict_quantile": {"low": 0.3, "high": 1.0}, "max_skip": {"low": 1, "high": 4}, "warmup": {"low": 1, "high": 4}, "tail": {"low": 0, "high": 1}, "order": [1, 2], "granularity": ["prefix"], "indicator": ["noise-level", "modulated-input"], "max_step_ratio": [null], "magnitude_bound": [null]}}','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}','{"pipeline": "SkyReelsV2DiffusionForcingPipeline", "transformer": "SkyReelsV2Transformer3DModel", "config": "9371754a22d3e2c3", "weights": "235fcfe2f93f3702", "files": "a3a82f2fbd372d75"}','2026-11-22 23:41:29.949526');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'tiny');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MAXIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'indicator',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["noise-level", "modulated-input"]}}');
INSERT INTO "trial_params" VALUES(2,1,'cache_quantile',0.0,'{"name": "FloatDistribution", "attributes": {"step": 0.02, "low": 0.0, "high": 0.4, "log": false}}');
INSERT INTO "trial_params" VALUES(3,1,'predict_threshold',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["never", "searched"]}}');
INSERT INTO "trial_params" VALUES(4,1,'granularity',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["prefix"]}}');
INSERT INTO "trial_params" VALUES(5,1,'max_skip',3.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(6,1,'order',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(7,1,'warmup',4.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(8,1,'tail',0.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 1}}');
INSERT INTO "trial_params" VALUES(9,1,'max_step_ratio',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(10,1,'magnitude_bound',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(11,2,'indicator',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["noise-level", "modulated-input"]}}');
INSERT INTO "trial_params" VALUES(12,2,'cache_quantile',0.0,'{"name": "FloatDistribution", "attributes": {"step": 0.02, "low": 0.0, "high": 0.4, "log": false}}');
INSERT INTO "trial_params" VALUES(13,2,'predict_threshold',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["never", "searched"]}}');
INSERT INTO "trial_params" VALUES(14,2,'granularity',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["prefix"]}}');
INSERT INTO "trial_params" VALUES(15,2,'max_skip',4.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(16,2,'order',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(17,2,'warmup',3.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(18,2,'tail',0.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 1}}');
INSERT INTO "trial_params" VALUES(19,2,'max_step_ratio',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(20,2,'magnitude_bound',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(21,3,'indicator',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["noise-level", "modulated-input"]}}');
INSERT INTO "trial_params" VALUES(22,3,'cache_quantile',0.0,'{"name": "FloatDistribution", "attributes": {"step": 0.02, "low": 0.0, "high": 0.4, "log": false}}');
INSERT INTO "trial_params" VALUES(23,3,'predict_threshold',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["never", "searched"]}}');
INSERT INTO "trial_params" VALUES(24,3,'granularity',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["prefix"]}}');
INSERT INTO "trial_params" VALUES(25,3,'max_skip',4.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(26,3,'order',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(27,3,'warmup',2.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(28,3,'tail',0.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 1}}');
INSERT INTO "trial_params" VALUES(29,3,'max_step_ratio',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(30,3,'magnitude_bound',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "warmup": 4, "max_skip": 3}');
INSERT INTO "trial_system_attributes" VALUES(2,2,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "warmup": 3, "max_skip": 4}');
INSERT INTO "trial_system_attributes" VALUES(3,3,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "warmup": 2, "max_skip": 4}');
INSERT INTO "trial_system_attributes" VALUES(4,4,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "warmup": 2, "max_skip": 3}');
INSERT INTO "trial_system_attributes" VALUES(5,1,'constraints:psnr_db','-48.37093663036708');
INSERT INTO "trial_system_attributes" VALUES(6,1,'constraints:psnr_worst_prompt_db','-52.030508083233244');
INSERT INTO "trial_system_attributes" VALUES(7,2,'constraints:psnr_db','-24.21936368710128');
INSERT INTO "trial_system_attributes" VALUES(8,2,'constraints:psnr_worst_prompt_db','-26.269364090469928');
INSERT INTO "trial_system_attributes" VALUES(9,3,'constraints:psnr_db','-21.990382150681555');
INSERT INTO "trial_system_attributes" VALUES(10,3,'constraints:psnr_worst_prompt_db','-25.05646530736967');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'result','{"trial": 0, "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 3, "order": 1, "warmup": 4, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "speedup_evaluations": 1.7142857142857142, "speedup_denoise": 1.4481256658927126, "figures": {"psnr_db": 69.37093663036708, "psnr_worst_prompt_db": 68.03050808323324, "psnr_worst_frame_db": 38.84270980076041, "ssim": 0.9872523844242096, "temporal_psnr_db": 44.53822002102817}, "cases": 2, "stopped": null}');
INSERT INTO "trial_user_attributes" VALUES(2,2,'result','{"trial": 1, "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 3, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "speedup_evaluations": 2.0, "speedup_denoise": 0.40028331446212584, "figures": {"psnr_db": 45.21936368710128, "psnr_worst_prompt_db": 42.26936409046993, "psnr_worst_frame_db": 34.61186409279585, "ssim": 0.9381037056446075, "temporal_psnr_db": 37.45801238950628}, "cases": 2, "stopped": null}');
INSERT INTO "trial_user_attributes" VALUES(3,3,'result','{"trial": 2, "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "change_map": {"x": [0.04540395736694336, 0.05447506904602051, 0.06656450033187866, 0.08318066596984863, 0.10690581798553467, 0.14247000217437744, 0.19932132959365845], "y": [0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.13039626727501552, 0.15182133515675864, 0.18547099580367407]}, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "speedup_evaluations": 2.4, "speedup_denoise": 1.0642379208043122, "figures": {"psnr_db": 42.990382150681555, "psnr_worst_prompt_db": 41.05646530736967, "psnr_worst_frame_db": 35.858470295288186, "ssim": 0.939812958240509, "temporal_psnr_db": 37.14903982974353}, "cases": 2, "stopped": null}');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.71428571428571419055e+00,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,6.93709366303670833548e+01,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,2.0,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,4.52193636871012785141e+01,'FINITE');
INSERT INTO "trial_values" VALUES(5,3,0,2.4,'FINITE');
INSERT INTO "trial_values" VALUES(6,3,1,4.29903821506815546609e+01,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-22 23:41:52.536957','2026-11-22 23:42:04.104062');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-22 23:42:05.825554','2026-11-22 23:42:28.817955');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-22 23:42:29.192739','2026-11-22 23:42:38.515998');
INSERT INTO "trials" VALUES(4,3,1,'WAITING',NULL,NULL);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE INDEX ix_scope_generation_trial ON scope_generation (study_id, trial_number);
CREATE UNIQUE INDEX ux_scope_generation_measured_once ON scope_generation (study_id, kind, policy_digest, prompt_digest, seed) WHERE state = 'complete' AND kind IN ('stock', 'exact', 'candidate');
CREATE INDEX ix_scope_generation_study_id ON scope_generation (study_id);
CREATE INDEX ix_scope_profile_study_id ON scope_profile (study_id);
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;

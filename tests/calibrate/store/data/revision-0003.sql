BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE scope_claim (
	study_id INTEGER NOT NULL, 
	work VARCHAR(80) NOT NULL, 
	worker_id INTEGER NOT NULL, 
	since DATETIME NOT NULL, 
	PRIMARY KEY (study_id, work), 
	FOREIGN KEY(study_id) REFERENCES scope_study (id) ON DELETE CASCADE, 
	FOREIGN KEY(worker_id) REFERENCES scope_worker (id) ON DELETE CASCADE
);
CREATE TABLE scope_environment (
	id INTEGER NOT NULL, 
	digest VARCHAR(16) NOT NULL, 
	hardware JSON NOT NULL, 
	versions JSON NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
INSERT INTO "scope_environment" VALUES(1,'2d8f6fdeb968d6ea','{"system": "Linux", "machine": "x86_64", "processor": "AMD EPYC", "cpu_count": 2, "threads": 1, "device": "cpu"}','{"python": "3.11.7", "scope-calibrate": "0.1.0", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "transformers": "5.23.0", "optuna": "5.0.0", "numpy": "2.4.6", "opencv-python-headless": "5.0.0.93", "pytorch-msssim": "1.0.0"}');
CREATE TABLE "scope_generation" (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	environment_id INTEGER NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	trial_number INTEGER, 
	prompt TEXT NOT NULL, 
	prompt_digest VARCHAR(16) NOT NULL, 
	seed BIGINT NOT NULL, 
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
	FOREIGN KEY(environment_id) REFERENCES scope_environment (id), 
	FOREIGN KEY(study_id) REFERENCES scope_study (id) ON DELETE CASCADE
);
INSERT INTO "scope_generation" VALUES(1,1,1,'stock',NULL,'a red circle moving left','8158b9ab2a12555c',1,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,1.06701362000421795528e-01,5.95779800000855175312e-02,1.81053710000469436636e-01,1.06701362000421795528e-01,'null','complete',NULL,'2026-11-25 13:21:09.346073','2026-11-25 13:21:09.655997');
INSERT INTO "scope_generation" VALUES(2,1,1,'exact',NULL,'a red circle moving left','8158b9ab2a12555c',1,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,1.38289894000081403646e-01,5.95779800000855175312e-02,2.12642242000129044754e-01,1.06701362000421795528e-01,'{"max_abs_diff": 1.1920928955078125e-06}','complete',NULL,'2026-11-25 13:21:09.346073','2026-11-25 13:21:09.655997');
INSERT INTO "scope_generation" VALUES(3,1,1,'stock',NULL,'a blue square moving right','f34e5b288641351c',2,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,1.19689553000171144958e-01,6.17828499998722691088e-02,1.92715738000060810009e-01,1.19689553000171144958e-01,'null','complete',NULL,'2026-11-25 13:21:09.688770','2026-11-25 13:21:10.037720');
INSERT INTO "scope_generation" VALUES(4,1,1,'exact',NULL,'a blue square moving right','f34e5b288641351c',2,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,1.4531414300017786445e-01,6.17828499998722691088e-02,2.18340328000067529501e-01,1.19689553000171144958e-01,'{"max_abs_diff": 9.5367431640625e-07}','complete',NULL,'2026-11-25 13:21:09.688770','2026-11-25 13:21:10.037720');
INSERT INTO "scope_generation" VALUES(5,1,1,'candidate',0,'a red circle moving left','8158b9ab2a12555c',1,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 3, "order": 1, "warmup": 4, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','b43c57eb5c71cb83','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',42,72,1.22842143000525538809e-01,6.45714980000775540247e-02,2.0218800900056521641e-01,1.06701362000421795528e-01,'{"psnr_db": 68.03050707490242, "psnr_worst_frame_db": 40.21439285313158, "ssim": 0.9887441992759705, "temporal_psnr_db": 46.93205438289973, "flicker": 0.13295672037826992, "motion_error_px": 0.19960075616836548, "memory_bytes": 127136}','complete',NULL,'2026-11-25 13:21:10.710404','2026-11-25 13:21:10.949450');
INSERT INTO "scope_generation" VALUES(6,1,1,'candidate',0,'a blue square moving right','f34e5b288641351c',2,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 3, "order": 1, "warmup": 4, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','b43c57eb5c71cb83','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',42,72,1.31033799000306316884e-01,6.01978519998738192953e-02,2.02474986000197532121e-01,1.19689553000171144958e-01,'{"psnr_db": 70.71133803749451, "psnr_worst_frame_db": 38.842709983228374, "ssim": 0.9857598543167114, "temporal_psnr_db": 42.14438678373834, "flicker": 0.11903970177962832, "motion_error_px": 0.15702901780605316, "memory_bytes": 127136}','complete',NULL,'2026-11-25 13:21:11.305784','2026-11-25 13:21:11.551676');
INSERT INTO "scope_generation" VALUES(7,1,1,'candidate',1,'a red circle moving left','8158b9ab2a12555c',1,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 3, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','49567552db4bf838','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',36,72,1.11308434999955352395e-01,5.83048460002828505821e-02,1.84387649000200326554e-01,1.06701362000421795528e-01,'{"psnr_db": 42.26936362561204, "psnr_worst_frame_db": 36.326128447535204, "ssim": 0.9479108452796936, "temporal_psnr_db": 37.73121014572943, "flicker": 0.3009156238790939, "motion_error_px": 0.5409256219863892, "memory_bytes": 127136}','complete',NULL,'2026-11-25 13:21:11.939958','2026-11-25 13:21:12.156952');
INSERT INTO "scope_generation" VALUES(8,1,1,'candidate',1,'a blue square moving right','f34e5b288641351c',2,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 3, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','49567552db4bf838','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',36,72,9.87703239998154458589e-02,5.73894039998776861466e-02,1.67403062999710527947e-01,1.19689553000171144958e-01,'{"psnr_db": 48.16935603487118, "psnr_worst_frame_db": 34.61186423838419, "ssim": 0.9282966256141663, "temporal_psnr_db": 37.18481461413148, "flicker": 0.33266337644022165, "motion_error_px": 0.40740543603897095, "memory_bytes": 127136}','complete',NULL,'2026-11-25 13:21:12.392821','2026-11-25 13:21:12.602998');
INSERT INTO "scope_generation" VALUES(9,1,1,'candidate',2,'a red circle moving left','8158b9ab2a12555c',1,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e3fb5d24dbaf680b','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,1.14023864000046160072e-01,0.0635101789998771,1.92308410999885381897e-01,1.06701362000421795528e-01,'{"psnr_db": 41.05646529689487, "psnr_worst_frame_db": 36.497104135581516, "ssim": 0.9393516182899475, "temporal_psnr_db": 36.69766681064018, "flicker": 0.2917940043716925, "motion_error_px": 0.5310630798339844, "memory_bytes": 127136}','complete',NULL,'2026-11-25 13:21:13.068383','2026-11-25 13:21:13.305991');
INSERT INTO "scope_generation" VALUES(10,1,1,'candidate',2,'a blue square moving right','f34e5b288641351c',2,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e3fb5d24dbaf680b','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,0.0807920480001485,6.10451930001545406412e-02,1.53080576000320434104e-01,1.19689553000171144958e-01,'{"psnr_db": 44.92429696607679, "psnr_worst_frame_db": 35.858470334607674, "ssim": 0.9402750730514526, "temporal_psnr_db": 37.60041321359421, "flicker": 0.30090450407357106, "motion_error_px": 0.3835752606391907, "memory_bytes": 127136}','complete',NULL,'2026-11-25 13:21:13.560514','2026-11-25 13:21:13.744714');
INSERT INTO "scope_generation" VALUES(11,1,1,'held_out_stock',2,'a green circle moving up','5e393e90adb2ae97',3,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,1.30349531000319984741e-01,5.90284419999989040661e-02,2.09581969000282697379e-01,1.30349531000319984741e-01,NULL,'complete',NULL,'2026-11-25 13:21:14.064514','2026-11-25 13:21:14.580007');
INSERT INTO "scope_generation" VALUES(12,1,1,'held_out_exact',2,'a green circle moving up','5e393e90adb2ae97',3,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,1.23834199000157241243e-01,NULL,NULL,1.30349531000319984741e-01,'{"max_abs_diff": 1.1920928955078125e-06}','complete',NULL,'2026-11-25 13:21:14.064514','2026-11-25 13:21:14.580007');
INSERT INTO "scope_generation" VALUES(13,1,1,'held_out_scope',2,'a green circle moving up','5e393e90adb2ae97',3,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e3fb5d24dbaf680b','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,9.30907940000906819477e-02,5.95549449999452917836e-02,1.72849734999999782303e-01,1.30349531000319984741e-01,'{"psnr_db": 41.67099886087557, "psnr_worst_frame_db": 33.83300889637632, "ssim": 0.9306877851486206, "temporal_psnr_db": 36.1532325973453, "flicker": 0.29373748618435086, "motion_error_px": 0.555160403251648}','complete',NULL,'2026-11-25 13:21:14.064514','2026-11-25 13:21:14.580007');
INSERT INTO "scope_generation" VALUES(14,1,1,'held_out_stock',2,'a green square moving down','3b73cffa00d83e97',4,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',72,72,0.114214838999942,5.57327289998283958993e-02,1.81314107999696716433e-01,0.114214838999942,NULL,'complete',NULL,'2026-11-25 13:21:14.592266','2026-11-25 13:21:15.081988');
INSERT INTO "scope_generation" VALUES(15,1,1,'held_out_exact',2,'a green square moving down','3b73cffa00d83e97',4,NULL,'full-compute','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',52,72,1.16388292999999976018e-01,NULL,NULL,0.114214838999942,'{"max_abs_diff": 1.430511474609375e-06}','complete',NULL,'2026-11-25 13:21:14.592266','2026-11-25 13:21:15.081988');
INSERT INTO "scope_generation" VALUES(16,1,1,'held_out_scope',2,'a green square moving down','3b73cffa00d83e97',4,'{"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}','e3fb5d24dbaf680b','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}',30,72,9.53927589998784242197e-02,5.59999770002832519821e-02,0.162759276000088,0.114214838999942,'{"psnr_db": 40.429028758852034, "psnr_worst_frame_db": 37.03358719897953, "ssim": 0.9446094036102295, "temporal_psnr_db": 36.59369278201643, "flicker": 0.49423415026389594, "motion_error_px": 0.6306672096252441}','complete',NULL,'2026-11-25 13:21:14.592266','2026-11-25 13:21:15.081988');
CREATE TABLE scope_generation_detail (
	generation_id INTEGER NOT NULL, 
	detail JSON NOT NULL, 
	PRIMARY KEY (generation_id), 
	FOREIGN KEY(generation_id) REFERENCES scope_generation (id) ON DELETE CASCADE
);
INSERT INTO "scope_generation_detail" VALUES(5,'{"evaluations": 42, "stock_evaluations": 72, "speedup_evaluations": 1.7142857142857142, "seconds": 0.1361339569998563, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 3, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "RRR", "RRR", ".PP", ".PP", "..P", "KKR"], "notes": [], "frame_psnr_db": [100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 65.5, 59.0, 55.18, 53.08, 53.3, 54.86, 58.43, 60.25, 61.46, 58.47, 54.76, 53.27, 50.06, 49.22, 49.22, 46.72, 46.04, 45.34, 45.15, 43.36, 42.12, 40.21], "prediction_errors": [[1, 0, 0, 0.146], [2, 0, 1, 0.302], [3, 0, 1, 0.262, 0.447], [3, 1, 0, 0.118], [4, 0, 1, 0.21, 0.401], [4, 1, 1, 0.225], [5, 0, 1, 0.148, 0.343], [5, 1, 1, 0.268, 0.333], [5, 2, 0, 0.167], [6, 0, 1, 0.251, 0.258], [6, 1, 1, 0.212, 0.414], [6, 2, 1, 0.295], [7, 0, 1, 0.315, 0.482], [7, 1, 1, 0.127, 0.346], [7, 2, 1, 0.248, 0.437], [11, 2, 1, 1.22, 9.78]]}');
INSERT INTO "scope_generation_detail" VALUES(6,'{"evaluations": 42, "stock_evaluations": 72, "speedup_evaluations": 1.7142857142857142, "seconds": 0.1448454659998788, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 3, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "RRR", "RRR", ".PP", ".PP", "..P", "KKR"], "notes": [], "frame_psnr_db": [100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 99.33, 98.93, 95.39, 96.74, 95.25, 96.17, 57.1, 55.72, 49.5, 49.14, 46.48, 48.8, 43.99, 43.08, 40.98, 40.91, 39.12, 39.22, 38.84, 39.57, 39.94, 40.19, 39.08], "prediction_errors": [[1, 0, 0, 0.169], [2, 0, 1, 0.331], [3, 0, 1, 0.236, 0.49], [3, 1, 0, 0.152], [4, 0, 1, 0.23, 0.366], [4, 1, 1, 0.255], [5, 0, 1, 0.187, 0.376], [5, 1, 1, 0.28, 0.377], [5, 2, 0, 0.134], [6, 0, 1, 0.261, 0.327], [6, 1, 1, 0.213, 0.431], [6, 2, 1, 0.242], [7, 0, 1, 0.316, 0.5], [7, 1, 1, 0.14, 0.345], [7, 2, 1, 0.307, 0.357], [11, 2, 1, 1.43, 12.1]]}');
INSERT INTO "scope_generation_detail" VALUES(7,'{"evaluations": 36, "stock_evaluations": 72, "speedup_evaluations": 2.0, "seconds": 0.11970798999982435, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 4, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "RRR", "PPP", ".PP", ".PP", "..P", "KKR"], "notes": [], "frame_psnr_db": [60.74, 47.17, 46.38, 45.65, 45.51, 43.34, 43.11, 43.11, 42.29, 43.22, 43.73, 47.31, 46.53, 45.65, 43.35, 42.76, 42.67, 42.85, 41.87, 41.19, 40.35, 39.92, 37.39, 37.98, 36.92, 37.75, 37.56, 38.95, 38.2, 39.09, 38.02, 38.02, 36.33], "prediction_errors": [[1, 0, 0, 0.146], [2, 0, 1, 0.302], [3, 0, 1, 0.262, 0.447], [3, 1, 0, 0.118], [4, 0, 1, 0.21, 0.401], [4, 1, 1, 0.225], [5, 0, 1, 0.148, 0.343], [5, 1, 1, 0.268, 0.333], [5, 2, 0, 0.167], [6, 0, 1, 0.251, 0.258], [6, 1, 1, 0.212, 0.414], [6, 2, 1, 0.295], [11, 2, 1, 1.53, 21.2]]}');
INSERT INTO "scope_generation_detail" VALUES(8,'{"evaluations": 36, "stock_evaluations": 72, "speedup_evaluations": 2.0, "seconds": 0.11478595800008407, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 4, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "RRR", "PPP", ".PP", ".PP", "..P", "KKR"], "notes": [], "frame_psnr_db": [92.1, 89.0, 70.76, 64.2, 58.19, 56.5, 56.16, 57.67, 60.01, 58.21, 53.49, 49.93, 46.91, 46.19, 42.85, 41.76, 38.8, 38.28, 36.81, 34.61, 35.09, 35.65, 36.94, 37.29, 37.91, 38.86, 38.26, 38.34, 38.48, 39.81, 40.56, 39.83, 40.14], "prediction_errors": [[1, 0, 0, 0.169], [2, 0, 1, 0.331], [3, 0, 1, 0.236, 0.49], [3, 1, 0, 0.152], [4, 0, 1, 0.23, 0.366], [4, 1, 1, 0.255], [5, 0, 1, 0.187, 0.376], [5, 1, 1, 0.28, 0.377], [5, 2, 0, 0.134], [6, 0, 1, 0.261, 0.327], [6, 1, 1, 0.213, 0.431], [6, 2, 1, 0.242], [11, 2, 1, 1.83, 17.3]]}');
INSERT INTO "scope_generation_detail" VALUES(9,'{"evaluations": 30, "stock_evaluations": 72, "speedup_evaluations": 2.4, "seconds": 0.12655038000002605, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 4, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "PPP", "PPP", ".PP", ".PP", "KKR", "..P"], "notes": [], "frame_psnr_db": [62.2, 48.81, 47.16, 45.91, 42.43, 40.85, 39.0, 38.46, 38.58, 40.0, 40.84, 44.87, 44.59, 44.23, 42.65, 42.7, 41.8, 41.58, 40.17, 38.0, 38.25, 37.15, 36.5, 37.93, 37.68, 38.69, 38.88, 38.32, 36.72, 37.62, 37.22, 37.67, 37.39], "prediction_errors": [[1, 0, 0, 0.146], [2, 0, 1, 0.302], [3, 0, 1, 0.262, 0.447], [3, 1, 0, 0.118], [4, 0, 1, 0.21, 0.401], [4, 1, 1, 0.225], [5, 0, 1, 0.148, 0.343], [5, 1, 1, 0.268, 0.333], [5, 2, 0, 0.167], [10, 2, 1, 1.97]]}');
INSERT INTO "scope_generation_detail" VALUES(10,'{"evaluations": 30, "stock_evaluations": 72, "speedup_evaluations": 2.4, "seconds": 0.08806323499993596, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 4, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "PPP", "PPP", ".PP", ".PP", "KKR", "..P"], "notes": [], "frame_psnr_db": [61.39, 53.1, 51.82, 52.11, 53.62, 51.55, 53.07, 51.42, 57.63, 59.53, 57.23, 52.12, 47.46, 43.96, 41.51, 40.93, 38.97, 37.57, 37.25, 35.86, 36.59, 37.22, 38.05, 38.71, 38.78, 39.53, 37.99, 39.24, 39.68, 40.79, 39.97, 38.93, 38.94], "prediction_errors": [[1, 0, 0, 0.169], [2, 0, 1, 0.331], [3, 0, 1, 0.236, 0.49], [3, 1, 0, 0.152], [4, 0, 1, 0.23, 0.366], [4, 1, 1, 0.255], [5, 0, 1, 0.187, 0.376], [5, 1, 1, 0.28, 0.377], [5, 2, 0, 0.134], [10, 2, 1, 1.56]]}');
INSERT INTO "scope_generation_detail" VALUES(13,'{"evaluations": 30, "stock_evaluations": 72, "speedup_evaluations": 2.4, "seconds": 0.08283132199994725, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 4, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "PPP", "PPP", ".PP", ".PP", "KKR", "..P"], "notes": [], "frame_psnr_db": [65.33, 43.87, 44.42, 42.18, 43.28, 41.99, 42.64, 43.89, 46.91, 50.66, 51.57, 49.93, 46.16, 43.59, 40.88, 40.4, 38.87, 38.21, 37.53, 37.39, 37.46, 36.91, 35.56, 34.7, 33.83, 34.95, 36.24, 38.9, 38.96, 39.84, 39.25, 39.93, 38.86], "prediction_errors": [[1, 0, 0, 0.151], [2, 0, 1, 0.277], [3, 0, 1, 0.303, 0.41], [3, 1, 0, 0.16], [4, 0, 1, 0.241, 0.466], [4, 1, 1, 0.303], [5, 0, 1, 0.161, 0.393], [5, 1, 1, 0.276, 0.448], [5, 2, 0, 0.127], [10, 2, 1, 1.61]]}');
INSERT INTO "scope_generation_detail" VALUES(16,'{"evaluations": 30, "stock_evaluations": 72, "speedup_evaluations": 2.4, "seconds": 0.0812802840000586, "fallbacks": 0, "over_budget": 0, "max_skip_seen": 4, "context_bytes": 4608, "history_bytes": 9216, "peak_memory_bytes": null, "modes": ["R..", "R..", "RR.", "RR.", "RRR", "RRR", "PPP", "PPP", ".PP", ".PP", "KKR", "..P"], "notes": [], "frame_psnr_db": [58.4, 41.54, 41.39, 39.05, 40.08, 38.23, 37.39, 37.03, 37.78, 39.57, 39.57, 43.16, 42.73, 42.03, 40.13, 40.26, 38.79, 40.22, 41.73, 41.28, 41.46, 42.33, 40.81, 40.57, 37.82, 38.41, 37.62, 39.37, 37.89, 38.65, 38.99, 39.25, 40.64], "prediction_errors": [[1, 0, 0, 0.137], [2, 0, 1, 0.266], [3, 0, 1, 0.278, 0.393], [3, 1, 0, 0.158], [4, 0, 1, 0.242, 0.43], [4, 1, 1, 0.284], [5, 0, 1, 0.169, 0.395], [5, 1, 1, 0.318, 0.42], [5, 2, 0, 0.155], [10, 2, 1, 1.72]]}');
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
INSERT INTO "scope_profile" VALUES(1,1,2,'fastest','profiles/tiny.json','{"format": "scope-profile", "format_version": 1, "created": "2026-11-25T13:21:15+00:00", "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "settings": {"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}, "model": {"pipeline": "SkyReelsV2DiffusionForcingPipeline", "transformer": "SkyReelsV2Transformer3DModel", "config": "9371754a22d3e2c3", "weights": "235fcfe2f93f3702"}, "evidence": {"speedup_evaluations": 2.4, "speedup_denoise": 1.2975369262075724, "speedup_end_to_end": 1.1647365362304805, "psnr_db": 41.0500138098638, "psnr_worst_prompt_db": 40.429028758852034, "psnr_worst_frame_db": 33.83300889637632, "ssim": 0.937648594379425, "temporal_psnr_db": 36.37346268968086, "flicker": 0.3939858182241234, "motion_error_px": 0.592913806438446, "scores": {}, "intervals": {"speedup_evaluations": {"mean_low": 2.4, "mean_high": 2.4}, "speedup_denoise": {"mean_low": 1.197311412285366, "mean_high": 1.4002408336982604}, "speedup_end_to_end": {"mean_low": 1.1140016867585396, "mean_high": 1.2125096344537813}, "exact_speedup_denoise": {"mean_low": 0.9813258366109212, "mean_high": 1.0526133495655305}, "psnr_db": {"mean_low": 40.429028758852034, "mean_high": 41.67099886087557}, "psnr_worst_frame_db": {"mean_low": 33.83300889637632, "mean_high": 37.03358719897953}, "ssim": {"mean_low": 0.9306877851486206, "mean_high": 0.9446094036102295}, "temporal_psnr_db": {"mean_low": 36.1532325973453, "mean_high": 36.59369278201643}, "flicker": {"mean_low": 0.29373748618435086, "mean_high": 0.49423415026389594}, "motion_error_px": {"mean_low": 0.555160403251648, "mean_high": 0.6306672096252441}}, "n": 2, "exact": {"speedup_denoise": 1.0180744024589585, "max_abs_diff": 1.430511474609375e-06}, "worst_prompt": {"prompt": "a green square moving down", "seed": 4, "speedup_evaluations": 2.4, "psnr_db": 40.429028758852034, "psnr_worst_frame_db": 37.03358719897953, "ssim": 0.9446094036102295, "temporal_psnr_db": 36.59369278201643, "flicker": 0.49423415026389594, "motion_error_px": 0.6306672096252441}, "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": 15.0, "safety_margin_db": 1.0}, "missed_floors": {}, "metrics": {"psnr_db": {"mean": 41.0500138098638, "mean_low": 40.429028758852034, "mean_high": 41.67099886087557, "std": 0.6209850510117683, "min": 40.429028758852034, "max": 41.67099886087557, "worst_case": "a green square moving down (seed 4)"}, "psnr_worst_frame_db": {"mean": 35.43329804767792, "mean_low": 33.83300889637632, "mean_high": 37.03358719897953, "std": 1.600289151301606, "min": 33.83300889637632, "max": 37.03358719897953, "worst_case": "a green circle moving up (seed 3)"}, "ssim": {"mean": 0.937648594379425, "mean_low": 0.9306877851486206, "mean_high": 0.9446094036102295, "std": 0.006960809230804443, "min": 0.9306877851486206, "max": 0.9446094036102295, "worst_case": "a green circle moving up (seed 3)"}, "temporal_psnr_db": {"mean": 36.37346268968086, "mean_low": 36.1532325973453, "mean_high": 36.59369278201643, "std": 0.22023009233556579, "min": 36.1532325973453, "max": 36.59369278201643, "worst_case": "a green circle moving up (seed 3)"}, "flicker": {"mean": 0.3939858182241234, "mean_low": 0.29373748618435086, "mean_high": 0.49423415026389594, "std": 0.10024833203977254, "min": 0.29373748618435086, "max": 0.49423415026389594, "worst_case": "a green square moving down (seed 4)"}, "motion_error_px": {"mean": 0.592913806438446, "mean_low": 0.555160403251648, "mean_high": 0.6306672096252441, "std": 0.037753403186798096, "min": 0.555160403251648, "max": 0.6306672096252441, "worst_case": "a green square moving down (seed 4)"}}, "timing": {"samples": 2, "variation": {"stock": 0.0933001820813996, "exact": 0.043834784835929175, "scope": 0.01727190553760698}, "limit": 0.1, "steady": true}, "cases": [{"prompt": "a green circle moving up", "seed": 3, "speedup_evaluations": 2.4, "speedup_denoise": 1.4002408336982604, "speedup_end_to_end": 1.2125096344537813, "exact_speedup_denoise": 1.0526133495655305, "max_abs_diff": 1.1920928955078125e-06, "psnr_db": 41.67099886087557, "psnr_worst_frame_db": 33.83300889637632, "ssim": 0.9306877851486206, "temporal_psnr_db": 36.1532325973453, "flicker": 0.29373748618435086, "motion_error_px": 0.555160403251648}, {"prompt": "a green square moving down", "seed": 4, "speedup_evaluations": 2.4, "speedup_denoise": 1.197311412285366, "speedup_end_to_end": 1.1140016867585396, "exact_speedup_denoise": 0.9813258366109212, "max_abs_diff": 1.430511474609375e-06, "psnr_db": 40.429028758852034, "psnr_worst_frame_db": 37.03358719897953, "ssim": 0.9446094036102295, "temporal_psnr_db": 36.59369278201643, "flicker": 0.49423415026389594, "motion_error_px": 0.6306672096252441}], "change_map": {"r_squared": 0.7845420234057024, "rank_correlation": 0.7926084819334147, "pairs": 42, "prompts": 2}, "search": {"n": 2, "speedup_evaluations": 2.4, "psnr_db": 42.99038113148583, "psnr_worst_prompt_db": 41.05646529689487, "psnr_worst_frame_db": 35.858470334607674, "ssim": 0.9398133456707001, "temporal_psnr_db": 37.1490400121172, "memory_bytes": 127136}, "hardware": {"system": "Linux", "machine": "x86_64", "processor": "AMD EPYC", "cpu_count": 2, "threads": 1, "device": "cpu"}, "versions": {"python": "3.11.7", "scope-calibrate": "0.1.0", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "transformers": "5.23.0", "optuna": "5.0.0", "numpy": "2.4.6", "opencv-python-headless": "5.0.0.93", "pytorch-msssim": "1.0.0"}, "measured": "2026-11-25T13:21:15+00:00"}, "provenance": {"study": "tiny", "study_digest": "ca26a2a83ee13160", "trial": 2, "rule": "fastest", "storage": "sqlite:///tiny.db", "verify": {"model": "../pipe", "model_spec": {"family": "skyreels_v2", "pipeline_class": "SkyReelsV2DiffusionForcingPipeline", "torch_dtype": "float32", "device": "cpu", "threads": 1, "flow_shift": null, "config": null, "weights": null}, "model_files": "a3a82f2fbd372d75", "generation": {"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "fps": 24, "negative_prompt": "", "max_sequence_length": 16, "overlap_history": null, "addnoise_condition": 0.0, "base_num_frames": 97}, "cases": [{"prompt": "a green circle moving up", "seed": 3}, {"prompt": "a green square moving down", "seed": 4}], "timing": {"max_variation": 0.1, "max_repeats": 1}}}}','2026-11-25 13:21:15.837263');
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
timing:
  max_repeats: 1
','ca26a2a83ee13160','{"model": {"path": "pipe", "family": "skyreels_v2", "pipeline_class": "SkyReelsV2DiffusionForcingPipeline", "torch_dtype": "float32", "device": "cpu", "threads": 1, "flow_shift": null, "config": null, "weights": null}, "generation": {"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "fps": 24, "negative_prompt": "", "max_sequence_length": 16, "overlap_history": null, "addnoise_condition": 0.0, "base_num_frames": 97}, "search_cases": [{"prompt": "a red circle moving left", "seed": 1}, {"prompt": "a blue square moving right", "seed": 2}], "search": {"cache_quantile": {"low": 0.0, "high": 0.4}, "predict_threshold": ["never", "searched"], "predict_quantile": {"low": 0.3, "high": 1.0}, "max_skip": {"low": 1, "high": 4}, "warmup": {"low": 1, "high": 4}, "tail": {"low": 0, "high": 1}, "order": [1, 2], "granularity": ["prefix"], "indicator": ["noise-level", "modulated-input"], "max_step_ratio": [null], "magnitude_bound": [null], "stale_quantile": [null], "error_budget": [null], "context_window": [null], "context_dtype": [null]}}','{"height": 16, "width": 16, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 3, "dtype": "float32", "scheduler": "UniPCMultistepScheduler(flow_shift=3.0, prediction_type=flow_prediction, solver_order=2, solver_type=bh2, timestep_spacing=linspace, use_flow_sigmas=True)", "prefix": false, "noised_prefix": false}','{"pipeline": "SkyReelsV2DiffusionForcingPipeline", "transformer": "SkyReelsV2Transformer3DModel", "config": "9371754a22d3e2c3", "weights": "235fcfe2f93f3702", "files": "a3a82f2fbd372d75"}','2026-11-25 13:21:08.964106');
CREATE TABLE scope_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT scope_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "scope_version" VALUES('0003');
CREATE TABLE scope_worker (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	started DATETIME NOT NULL, 
	seen DATETIME NOT NULL, 
	finished DATETIME, 
	PRIMARY KEY (id), 
	FOREIGN KEY(study_id) REFERENCES scope_study (id) ON DELETE CASCADE
);
INSERT INTO "scope_worker" VALUES(1,1,'2026-11-25 13:21:08.977477','2026-11-25 13:21:15.845641','2026-11-25 13:21:15.845641');
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
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["speed-up in block evaluations", "PSNR in dB"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'change_maps','{"noise-level": {"r_squared": 0.7845420234057024, "rank_correlation": 0.7926084819334147, "pairs": 42, "prompts": 2}, "modulated-input": {"r_squared": 0.5540829258976229, "rank_correlation": 0.6408049971795899, "pairs": 42, "prompts": 2}}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_heartbeats" VALUES(1,1,'2026-11-25 13:21:10');
INSERT INTO "trial_heartbeats" VALUES(2,2,'2026-11-25 13:21:11');
INSERT INTO "trial_heartbeats" VALUES(3,3,'2026-11-25 13:21:13');
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
INSERT INTO "trial_params" VALUES(4,1,'stale_quantile',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(5,1,'granularity',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["prefix"]}}');
INSERT INTO "trial_params" VALUES(6,1,'max_skip',3.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(7,1,'order',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(8,1,'warmup',4.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(9,1,'tail',0.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 1}}');
INSERT INTO "trial_params" VALUES(10,1,'max_step_ratio',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(11,1,'magnitude_bound',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(12,1,'error_budget',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(13,1,'context_window',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(14,1,'context_dtype',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(15,2,'indicator',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["noise-level", "modulated-input"]}}');
INSERT INTO "trial_params" VALUES(16,2,'cache_quantile',0.0,'{"name": "FloatDistribution", "attributes": {"step": 0.02, "low": 0.0, "high": 0.4, "log": false}}');
INSERT INTO "trial_params" VALUES(17,2,'predict_threshold',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["never", "searched"]}}');
INSERT INTO "trial_params" VALUES(18,2,'stale_quantile',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(19,2,'granularity',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["prefix"]}}');
INSERT INTO "trial_params" VALUES(20,2,'max_skip',4.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(21,2,'order',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(22,2,'warmup',3.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(23,2,'tail',0.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 1}}');
INSERT INTO "trial_params" VALUES(24,2,'max_step_ratio',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(25,2,'magnitude_bound',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(26,2,'error_budget',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(27,2,'context_window',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(28,2,'context_dtype',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(29,3,'indicator',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["noise-level", "modulated-input"]}}');
INSERT INTO "trial_params" VALUES(30,3,'cache_quantile',0.0,'{"name": "FloatDistribution", "attributes": {"step": 0.02, "low": 0.0, "high": 0.4, "log": false}}');
INSERT INTO "trial_params" VALUES(31,3,'predict_threshold',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["never", "searched"]}}');
INSERT INTO "trial_params" VALUES(32,3,'stale_quantile',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(33,3,'granularity',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["prefix"]}}');
INSERT INTO "trial_params" VALUES(34,3,'max_skip',4.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(35,3,'order',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(36,3,'warmup',2.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 4}}');
INSERT INTO "trial_params" VALUES(37,3,'tail',0.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 1}}');
INSERT INTO "trial_params" VALUES(38,3,'max_step_ratio',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(39,3,'magnitude_bound',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(40,3,'error_budget',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(41,3,'context_window',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
INSERT INTO "trial_params" VALUES(42,3,'context_dtype',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [null]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "stale_quantile": null, "error_budget": null, "context_window": null, "context_dtype": null, "warmup": 4, "max_skip": 3}');
INSERT INTO "trial_system_attributes" VALUES(2,2,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "stale_quantile": null, "error_budget": null, "context_window": null, "context_dtype": null, "warmup": 3, "max_skip": 4}');
INSERT INTO "trial_system_attributes" VALUES(3,3,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "stale_quantile": null, "error_budget": null, "context_window": null, "context_dtype": null, "warmup": 2, "max_skip": 4}');
INSERT INTO "trial_system_attributes" VALUES(4,4,'fixed_params','{"cache_quantile": 0.0, "predict_threshold": "never", "tail": 0, "order": 1, "indicator": "noise-level", "granularity": "prefix", "max_step_ratio": null, "magnitude_bound": null, "stale_quantile": null, "error_budget": null, "context_window": null, "context_dtype": null, "warmup": 2, "max_skip": 3}');
INSERT INTO "trial_system_attributes" VALUES(5,1,'constraints:psnr_db','-48.370922556198465');
INSERT INTO "trial_system_attributes" VALUES(6,1,'constraints:psnr_worst_prompt_db','-52.03050707490242');
INSERT INTO "trial_system_attributes" VALUES(7,2,'constraints:psnr_db','-24.219359830241608');
INSERT INTO "trial_system_attributes" VALUES(8,2,'constraints:psnr_worst_prompt_db','-26.269363625612037');
INSERT INTO "trial_system_attributes" VALUES(9,3,'constraints:psnr_db','-21.990381131485833');
INSERT INTO "trial_system_attributes" VALUES(10,3,'constraints:psnr_worst_prompt_db','-25.05646529689487');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'result','{"trial": 0, "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 3, "order": 1, "warmup": 4, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "speedup_evaluations": 1.7142857142857142, "speedup_denoise": 0.8917383554202672, "figures": {"psnr_db": 69.37092255619847, "psnr_worst_prompt_db": 68.03050707490242, "psnr_worst_frame_db": 38.842709983228374, "ssim": 0.9872520267963409, "temporal_psnr_db": 44.53822058331903, "memory_bytes": 127136}, "cases": 2, "stopped": null}');
INSERT INTO "trial_user_attributes" VALUES(2,2,'estimate','{"speedup_evaluations": 2.0, "figures": {"psnr_db": 66.25441783599825, "psnr_worst_prompt_db": 65.7894705921214}}');
INSERT INTO "trial_user_attributes" VALUES(3,2,'result','{"trial": 1, "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 3, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "speedup_evaluations": 2.0, "speedup_denoise": 1.0776478120800397, "figures": {"psnr_db": 45.21935983024161, "psnr_worst_prompt_db": 42.26936362561204, "psnr_worst_frame_db": 34.61186423838419, "ssim": 0.9381037354469299, "temporal_psnr_db": 37.45801237993045, "memory_bytes": 127136}, "cases": 2, "stopped": null}');
INSERT INTO "trial_user_attributes" VALUES(4,3,'estimate','{"speedup_evaluations": 2.4, "figures": {"psnr_db": 49.26700459463837, "psnr_worst_prompt_db": 47.45248641651914}}');
INSERT INTO "trial_user_attributes" VALUES(5,3,'result','{"trial": 2, "policy": {"granularity": "prefix", "stale_tolerance": null, "indicator": "noise-level", "noise_map": {"x": [0.3016776442527771, 0.5009989738464355, 0.643468976020813, 0.7503747940063477, 0.8335554599761963, 0.900119960308075, 0.9545950293540955, 0.9999989867210388], "y": [0.0, 0.18547100573778158, 0.3372923185427984, 0.46014442667365085, 0.546306286007166, 0.6972285248339177, 0.8401737101376058, 0.9892736536761126]}, "change_map": null, "cache_threshold": 0.0, "predict_threshold": null, "max_skip": 4, "order": 1, "warmup": 2, "tail": 0, "max_step_ratio": null, "magnitude_bound": null, "error_budget": null, "error_growth": 0.0, "context_window": null, "context_dtype": null, "plan": null}, "speedup_evaluations": 2.4, "speedup_denoise": 1.1620760987961123, "figures": {"psnr_db": 42.99038113148583, "psnr_worst_prompt_db": 41.05646529689487, "psnr_worst_frame_db": 35.858470334607674, "ssim": 0.9398133456707001, "temporal_psnr_db": 37.1490400121172, "memory_bytes": 127136}, "cases": 2, "stopped": null}');
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
INSERT INTO "trial_values" VALUES(2,1,1,6.93709225561984652594e+01,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,2.0,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,4.52193598302416077672e+01,'FINITE');
INSERT INTO "trial_values" VALUES(5,3,0,2.4,'FINITE');
INSERT INTO "trial_values" VALUES(6,3,1,4.29903811314858330661e+01,'FINITE');
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
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-25 13:21:10.607792','2026-11-25 13:21:11.808023');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-25 13:21:11.837226','2026-11-25 13:21:12.886683');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-25 13:21:12.931327','2026-11-25 13:21:14.032426');
INSERT INTO "trials" VALUES(4,3,1,'WAITING',NULL,NULL);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE INDEX ix_scope_profile_study_id ON scope_profile (study_id);
CREATE INDEX ix_scope_worker_study_id ON scope_worker (study_id);
CREATE INDEX ix_scope_claim_worker_id ON scope_claim (worker_id);
CREATE INDEX ix_scope_generation_trial ON scope_generation (study_id, trial_number);
CREATE UNIQUE INDEX ux_scope_generation_measured_once ON scope_generation (study_id, kind, policy_digest, prompt_digest, seed) WHERE state = 'complete' AND kind IN ('stock', 'exact', 'candidate');
CREATE INDEX ix_scope_generation_study_id ON scope_generation (study_id);
CREATE INDEX ix_scope_generation_finished ON scope_generation (study_id, finished);
CREATE INDEX ix_scope_generation_kind ON scope_generation (study_id, kind, state);
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;

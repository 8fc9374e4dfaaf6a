BEGIN TRANSACTION;
CREATE TABLE downloads (
	url_sha256 VARCHAR NOT NULL, 
	etag VARCHAR NOT NULL, 
	sha256 VARCHAR NOT NULL, 
	PRIMARY KEY (url_sha256)
);
INSERT INTO "downloads" VALUES('uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu','etag','0000000000000000000000000000000000000000000000000000000000000000');
CREATE TABLE requests (
	seq INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	state VARCHAR(11) NOT NULL, 
	model VARCHAR NOT NULL, 
	base VARCHAR NOT NULL, 
	job JSON NOT NULL, 
	secrets JSON, 
	ready BOOLEAN NOT NULL, 
	idempotency_key VARCHAR, 
	fingerprint VARCHAR, 
	created_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	finished_at DOUBLE, 
	expires_at DOUBLE, 
	tries INTEGER NOT NULL, 
	overtaken INTEGER NOT NULL, 
	cancel BOOLEAN NOT NULL, 
	error_code VARCHAR, 
	error VARCHAR, 
	outputs JSON, 
	timings JSON, 
	webhook_url VARCHAR, 
	webhook_tries INTEGER NOT NULL, 
	webhook_due DOUBLE, 
	PRIMARY KEY (seq), 
	UNIQUE (id), 
	UNIQUE (idempotency_key)
);
INSERT INTO "requests" VALUES(1,'done','succeeded','sd15','sd15 Quantization(quantize=False, quantize_te=None, qtype=''qfloat8'', qtype_te=''qfloat8'', accuracy_recovery_adapter=None, exclude=())','{"id": "done", "model": "sd15", "quantization": {"quantize": false, "quantize_te": null, "qtype": "qfloat8", "qtype_te": "qfloat8", "accuracy_recovery_adapter": null, "exclude": []}, "loras": [{"expert": "", "label": "a.safetensors", "strength": 1.0, "file": "a.safetensors", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}], "prompts": [{"fields": {"prompt": "a fox", "seed": 7}, "controls": {}}], "lora_mode": null, "picture_format": "jpg", "video_format": "mp4", "quality": 95, "output_folder": "outputs", "verified": null}','null',1,NULL,NULL,1.79601297906135702131e+09,1.79601297910339260098e+09,1.7960129791177577972e+09,NULL,1,0,0,NULL,NULL,'[]','{"total": 1.0, "base_was_loaded": false}',NULL,0,NULL);
INSERT INTO "requests" VALUES(2,'started','in_progress','sd15','sd15 Quantization(quantize=False, quantize_te=None, qtype=''qfloat8'', qtype_te=''qfloat8'', accuracy_recovery_adapter=None, exclude=())','{"id": "started", "model": "sd15", "quantization": {"quantize": false, "quantize_te": null, "qtype": "qfloat8", "qtype_te": "qfloat8", "accuracy_recovery_adapter": null, "exclude": []}, "loras": [{"expert": "", "label": "a.safetensors", "strength": 1.0, "file": "a.safetensors", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}], "prompts": [{"fields": {"prompt": "a fox", "seed": 7}, "controls": {}}], "lora_mode": null, "picture_format": "jpg", "video_format": "mp4", "quality": 95, "output_folder": "outputs", "verified": null}','{"hf_token": null, "urls": {}}',1,NULL,NULL,1.79601297907710289953e+09,1.79601297914028906819e+09,NULL,NULL,1,0,0,NULL,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "requests" VALUES(3,'waits','in_queue','sd15','sd15 Quantization(quantize=False, quantize_te=None, qtype=''qfloat8'', qtype_te=''qfloat8'', accuracy_recovery_adapter=None, exclude=())','{"id": "waits", "model": "sd15", "quantization": {"quantize": false, "quantize_te": null, "qtype": "qfloat8", "qtype_te": "qfloat8", "accuracy_recovery_adapter": null, "exclude": []}, "loras": [{"expert": "", "label": "a.safetensors", "strength": 1.0, "file": "a.safetensors", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}], "prompts": [{"fields": {"prompt": "a fox", "seed": 7}, "controls": {}}], "lora_mode": null, "picture_format": "jpg", "video_format": "mp4", "quality": 95, "output_folder": "outputs", "verified": null}','{"hf_token": null, "urls": {}}',1,'key','print',1.79601297907781243322e+09,NULL,NULL,NULL,0,0,0,NULL,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "requests" VALUES(4,'hooked','canceled','sd15','sd15 Quantization(quantize=False, quantize_te=None, qtype=''qfloat8'', qtype_te=''qfloat8'', accuracy_recovery_adapter=None, exclude=())','{"id": "hooked", "model": "sd15", "quantization": {"quantize": false, "quantize_te": null, "qtype": "qfloat8", "qtype_te": "qfloat8", "accuracy_recovery_adapter": null, "exclude": []}, "loras": [{"expert": "", "label": "a.safetensors", "strength": 1.0, "file": "a.safetensors", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}], "prompts": [{"fields": {"prompt": "a fox", "seed": 7}, "controls": {}}], "lora_mode": null, "picture_format": "jpg", "video_format": "mp4", "quality": 95, "output_folder": "outputs", "verified": null}','null',1,NULL,NULL,1.79601297907847023008e+09,NULL,1.79601297914121294015e+09,NULL,0,0,0,'CANCELED','canceled before it started',NULL,NULL,'https://a.example/',0,1.79601297914121294015e+09);
CREATE INDEX ix_requests_state ON requests (state);
CREATE INDEX ix_requests_finished_at ON requests (finished_at);
CREATE INDEX ix_requests_webhook_due ON requests (webhook_due);
COMMIT;

{{/* Values that contradict each other: each is a sentence that says what to change. What one value alone may be is in values.schema.json. */}}

{{- define "inferq.validate" -}}
{{- include "inferq.validateBroker" . }}
{{- $pools := dict }}
{{- include "inferq.pools" (dict "root" . "into" $pools) }}
{{- if not $pools }}
{{- fail "pools: none is enabled, so there would be no worker; add one, such as pools.default.models=[digits]" }}
{{- end }}
{{- range $name, $pool := $pools }}
{{- $of := dict "root" $ "name" $name "pool" $pool "at" (printf "pools.%s" $name) }}
{{- include "inferq.validatePool" $of }}
{{- include "inferq.validateExtras" $of }}
{{- include "inferq.validateModelRepository" $of }}
{{- include "inferq.validateScaling" $of }}
{{- include "inferq.validateSwitch" $of }}
{{- include "inferq.validateProbes" $of }}
{{- end }}
{{- include "inferq.validateMetrics" . }}
{{- end }}

{{- define "inferq.validateBroker" -}}
{{- $broker := .Values.broker }}
{{- if and (not $broker.existingSecret) (ne $broker.login "certificate") }}
{{- fail (printf "broker.existingSecret: is not set; name a Secret of this namespace that holds %s (kubectl create secret generic inferq-broker --from-literal=uri=amqp://user:password@host:5672/%%2f)" (ternary (printf "the URI of RabbitMQ under the key `%s`" $broker.uriKey) (printf "the keys `%s` and `%s`" $broker.usernameKey $broker.passwordKey) (eq $broker.login "uri"))) }}
{{- end }}
{{- if eq $broker.login "uri" }}
{{- if or $broker.host $broker.port }}
{{- fail "broker.host and broker.port: are set, but with broker.login=uri the URI in the Secret names the broker; remove them, or set broker.login to password or certificate" }}
{{- end }}
{{- if $broker.tls.enabled }}
{{- fail "broker.tls.enabled: is set, but with broker.login=uri the URI in the Secret asks for TLS by beginning with amqps://; remove it, or set broker.login to password or certificate" }}
{{- end }}
{{- else }}
{{- if not $broker.host }}
{{- fail (printf "broker.host: is not set; with broker.login=%s it must name the broker" $broker.login) }}
{{- end }}
{{- if and (not $broker.tls.enabled) (or $broker.tls.ca.existingSecret $broker.tls.ca.existingConfigMap $broker.tls.clientCertificate.existingSecret) }}
{{- fail "broker.tls.enabled: is false, but broker.tls.ca or broker.tls.clientCertificate is set; set it to true, or remove them" }}
{{- end }}
{{- end }}
{{- if and (eq $broker.login "certificate") (not $broker.tls.clientCertificate.existingSecret) }}
{{- fail "broker.tls.clientCertificate.existingSecret: is not set, but broker.login=certificate logs in with it; name a Secret with tls.crt and tls.key" }}
{{- end }}
{{- if and $broker.tls.ca.existingSecret $broker.tls.ca.existingConfigMap }}
{{- fail "broker.tls.ca: existingSecret and existingConfigMap are both set; remove one of them" }}
{{- end }}
{{- end }}

{{- define "inferq.validatePool" -}}
{{- $pool := .pool }}
{{- $fullname := include "inferq.poolFullname" . }}
{{- if gt (len $fullname) 54 }}
{{- fail (printf "%s: its name `%s` has %d characters, but 54 are allowed, because KEDA and Kubernetes put theirs before and behind it; shorten the release, the pool or fullnameOverride" .at $fullname (len $fullname)) }}
{{- end }}
{{- if not $pool.models }}
{{- fail (printf "%s.models: is empty; list the models that it serves, since each of them is a queue" .at) }}
{{- end }}
{{- $least := add (ceil $pool.drainTimeoutSeconds) 5 }}
{{- if lt (int64 (include "inferq.gracePeriod" $pool)) (int64 $least) }}
{{- fail (printf "%s.terminationGracePeriodSeconds: is %d, but drainTimeoutSeconds is %v: Kubernetes would kill workers over jobs in their hands; set it to %d or more, leave it out, or lower drainTimeoutSeconds" .at (int64 $pool.terminationGracePeriodSeconds) $pool.drainTimeoutSeconds $least) }}
{{- end }}
{{- $budget := $pool.podDisruptionBudget }}
{{- if and $budget.enabled (kindIs "invalid" $budget.minAvailable) (kindIs "invalid" $budget.maxUnavailable) }}
{{- fail (printf "%s.podDisruptionBudget: has neither maxUnavailable nor minAvailable; set one of them, or enabled to false" .at) }}
{{- end }}
{{- $image := deepCopy .root.Values.image }}
{{- if and (eq $pool.device "cuda") $image.digest (not (or $pool.image.digest $pool.image.tag $pool.image.repository)) }}
{{- fail (printf "%s.image.digest: is not set, but image.digest is: that image runs on CPUs, and this pool has the device cuda; set the digest of the CUDA image here" .at) }}
{{- end }}
{{- if and (eq $pool.device "cuda") $image.tag (not (or $pool.image.tag $pool.image.digest)) }}
{{- fail (printf "%s.image.tag: is not set, but image.tag is: that image runs on CPUs, and this pool has the device cuda; set the tag of the CUDA image here" .at) }}
{{- end }}
{{- $limit := include "inferq.memoryLimit" $pool }}
{{- $config := deepCopy .root.Values.config }}
{{- include "inferq.merge" (dict "into" $config "from" (deepCopy $pool.config)) }}
{{- $bodies := dig "limits" "memory_bytes" nil $config }}
{{- $body := default 16777216 (dig "limits" "body_bytes_max" nil $config) | int64 }}
{{- if not (kindIs "invalid" $bodies) }}
{{- if lt (int64 $bodies) $body }}
{{- fail (printf "%s: config.limits.memory_bytes is %d, less than one body may take (config.limits.body_bytes_max, %d bytes); raise it, or lower body_bytes_max" .at (int64 $bodies) $body) }}
{{- end }}
{{- if and $limit (ge (int64 $bodies) (int64 $limit)) }}
{{- fail (printf "%s: config.limits.memory_bytes is %d, but resources.limits.memory is %v: bodies alone could have the worker killed; raise the memory limit above it, or leave memory_bytes out" .at (int64 $bodies) $pool.resources.limits.memory) }}
{{- end }}
{{- else if and $limit (lt (div (int64 $limit) 2) $body) }}
{{- fail (printf "%s.resources.limits.memory: is %v, and half of it is less than one body may take (config.limits.body_bytes_max, %d bytes); raise it to %d or more, or lower body_bytes_max" .at $pool.resources.limits.memory $body (mul 2 $body)) }}
{{- end }}
{{- end }}

{{/* The key of inferq.toml that an argument of a worker or a variable sets past the chart, and the value for it. */}}
{{- define "inferq.validateExtras" -}}
{{- $at := .at }}
{{- $instead := dict }}
{{- range $key := list "uri" "uri_file" "username_file" "password_file" }}{{ $_ := set $instead (printf "broker.%s" $key) "broker" }}{{ end }}
{{- range $key := list "ca_file" "client_certificate_file" "client_key_file" }}{{ $_ := set $instead (printf "broker.%s" $key) "broker.tls" }}{{ end }}
{{- range $key, $value := dict "prefix" "prefix" "queue_type" "queueType" "delivery_limit" "deliveryLimit" "mode" "workerMode" }}
{{- $_ := set $instead (printf "topology.%s" $key) (printf "topology.%s" $value) }}
{{- end }}
{{- range $key, $value := dict "models.repository" "modelRepository.path" "models.load" "models" "worker.device" "device" "worker.drain_timeout_ms" "drainTimeoutSeconds" "limits.memory_bytes" "config.limits.memory_bytes" "limits.body_bytes_max" "config.limits.body_bytes_max" }}
{{- $_ := set $instead $key (printf "%s.%s" $at $value) }}
{{- end }}
{{- $_ := set $instead "telemetry.listen" "telemetry" }}
{{- range $key, $value := $instead }}
{{- $variable := printf "INFERQ_%s" (replace "." "__" $key) | upper }}
{{- range $.pool.extraEnv }}
{{- if eq .name $variable }}
{{- fail (printf "%s.extraEnv: has %s, which would win over what the chart sets and checks; set %s instead" $at $variable $value) }}
{{- end }}
{{- end }}
{{- $flag := get (dict "broker.uri" "--broker" "models.repository" "--models" "telemetry.listen" "--listen") $key }}
{{- range $.pool.extraArgs }}
{{- if or (hasPrefix (printf "%s=" $key) (trimPrefix "--set=" .)) (and $flag (eq (regexFind "^[^=]+" .) $flag)) }}
{{- fail (printf "%s.extraArgs: sets %s, which would win over what the chart sets and checks; set %s instead" $at $key $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- range .pool.extraArgs }}
{{- if eq (regexFind "^[^=]+" .) "--config" }}
{{- fail (printf "%s.extraArgs: has --config, in the place of the file that the chart makes; set config instead" $at) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "inferq.validateModelRepository" -}}
{{- $models := .pool.modelRepository }}
{{- if and (eq $models.source "imageVolume") (not $models.imageVolume.reference) }}
{{- fail (printf "%s.modelRepository.imageVolume.reference: is not set, but source is imageVolume; name the image that holds the models" .at) }}
{{- end }}
{{- if and (eq $models.source "imageVolume") (semverCompare "<1.33.0-0" .root.Capabilities.KubeVersion.Version) }}
{{- fail (printf "%s.modelRepository.source: is imageVolume, but Kubernetes is %s and has them from 1.33 on; use persistentVolumeClaim or initContainer" .at .root.Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and (eq $models.source "persistentVolumeClaim") (not $models.persistentVolumeClaim.claimName) }}
{{- fail (printf "%s.modelRepository.persistentVolumeClaim.claimName: is not set, but source is persistentVolumeClaim; name the claim" .at) }}
{{- end }}
{{- if and (eq $models.source "initContainer") (not $models.initContainer.image) }}
{{- fail (printf "%s.modelRepository.initContainer.image: is not set, but source is initContainer; name the image that fetches the models" .at) }}
{{- end }}
{{- if and (eq $models.source "image") $models.subPath }}
{{- fail (printf "%s.modelRepository.subPath: is set, but source is image, which is no volume; set path instead" .at) }}
{{- end }}
{{- end }}

{{- define "inferq.validateProbes" -}}
{{- $host := .root.Values.telemetry.host }}
{{- if has $host (list "127.0.0.1" "[::1]") }}
{{- range $probe := list "startupProbe" "livenessProbe" "readinessProbe" }}
{{- with get (default dict (index $.pool $probe)) "httpGet" }}
{{- if eq (toString .port) "telemetry" }}
{{- fail (printf "%s.%s: asks the port telemetry, but telemetry.host is %s, which nobody outside of the pod reaches; name the port of a proxy in extraContainers, or set telemetry.host to 0.0.0.0 or [::]" $.at $probe $host) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "inferq.validateScaling" -}}
{{- $scaling := .pool.autoscaling }}
{{- $mode := $scaling.mode }}
{{- $least := int64 $scaling.minReplicas }}
{{- if and (ne $mode "none") (not (kindIs "invalid" .pool.replicas)) }}
{{- fail (printf "%s.replicas: is set, but autoscaling.mode is %s, which sets the number of workers; remove replicas, or set the mode to none" .at $mode) }}
{{- end }}
{{- if has $mode (list "keda" "hpa") }}
{{- if gt $least (int64 $scaling.maxReplicas) }}
{{- fail (printf "%s.autoscaling: minReplicas is %d, more than maxReplicas, which is %d; raise maxReplicas or lower minReplicas" .at $least (int64 $scaling.maxReplicas)) }}
{{- end }}
{{- end }}
{{- if eq $mode "hpa" }}
{{- if lt $least 1 }}
{{- fail (printf "%s.autoscaling.minReplicas: is 0, but an HPA cannot start again from 0; set it to 1, or autoscaling.mode to keda" .at) }}
{{- end }}
{{- if and $scaling.hpa.cpuPercent (not (dig "requests" "cpu" "" .pool.resources)) }}
{{- fail (printf "%s.autoscaling.hpa.cpuPercent: is set, but resources.requests.cpu is not, of which it is the share; set the request, or cpuPercent to 0" .at) }}
{{- end }}
{{- if not (or $scaling.hpa.cpuPercent $scaling.hpa.metrics) }}
{{- fail (printf "%s.autoscaling.hpa: has neither cpuPercent nor metrics to scale on; set one of them" .at) }}
{{- end }}
{{- end }}
{{- if eq $mode "keda" }}
{{- include "inferq.validateKeda" . }}
{{- if include "inferq.asksManagement" .pool }}{{- include "inferq.validateKedaVhost" .root }}{{- end }}
{{- end }}
{{- end }}

{{- define "inferq.validateKedaVhost" -}}
{{- $vhost := .Values.broker.vhost }}
{{- if and (contains " " $vhost) (not .Values.broker.management.uri) }}
{{- fail (printf "broker.vhost: `%s` has a space, which KEDA asks for as a `+` unless the chart writes the address; set broker.management.uri, and the login in a Secret under broker.management.usernameKey and passwordKey or in keda.triggerAuthentication.existing" $vhost) }}
{{- end }}
{{- if and (regexMatch "[%?#]" $vhost) (not (regexMatch "[A-Za-z0-9]" $vhost)) }}
{{- fail (printf "broker.vhost: `%s` has a `%%`, `?` or `#` and neither a letter nor a digit, and there is no address by which KEDA would ask for that; use another name, or autoscaling.mode external" $vhost) }}
{{- end }}
{{- end }}

{{- define "inferq.validateKeda" -}}
{{- $keda := .pool.autoscaling.keda }}
{{- $least := int64 .pool.autoscaling.minReplicas }}
{{- $values := .root.Values }}
{{- $management := $values.broker.management }}
{{- if not (or $keda.jobs.enabled $keda.seconds.enabled) }}
{{- fail (printf "%s.autoscaling.keda: jobs and seconds are both off, so that nothing follows what waits (a rate alone follows what comes); enable one of them" .at) }}
{{- end }}
{{- include "inferq.validateRate" . }}
{{- $asked := include "inferq.asksManagement" .pool }}
{{- $existing := include "inferq.managementExisting" .pool }}
{{- if and $asked (not (or $management.uri $management.uriKey $existing)) }}
{{- fail (printf "%s.autoscaling.mode: is keda, but broker.management.uri is not set, by which KEDA sees the queues; set it, such as http://rabbitmq:15672, or keda.jobs.protocol to amqp, which sees no jobs in hand" .at) }}
{{- end }}
{{- if and $asked $management.uri (regexMatch "^[a-z]+://[^/]*@" $management.uri) }}
{{- fail "broker.management.uri: holds a login, which everybody could read in the ScaledObject; put it into a Secret, under broker.management.usernameKey and passwordKey, or the whole URI under uriKey" }}
{{- end }}
{{- if and $asked $management.uri $management.uriKey }}
{{- fail "broker.management: uri and uriKey are both set; remove one of them" }}
{{- end }}
{{- if and $asked (eq $values.broker.login "uri") (not (or $management.existingSecret $management.uriKey $existing)) }}
{{- fail (printf "broker.management.existingSecret: is not set, and with broker.login=uri broker.existingSecret holds no user and password apart, with which KEDA logs in; name a Secret with the keys `%s` and `%s` (it may be the same), or set broker.management.uriKey to a key with the whole URI of the management API" $management.usernameKey $management.passwordKey) }}
{{- end }}
{{- if and $asked (not $existing) (not (or $management.existingSecret $values.broker.existingSecret)) }}
{{- fail "broker.management.existingSecret: is not set, and there is no broker.existingSecret to take its place; name a Secret with the login at the management API" }}
{{- end }}
{{- if and $asked (or (gt (len .pool.models) 500) (gt (len (include "inferq.queuesPattern" . | urlquery)) 7500)) }}
{{- fail (printf "%s.models: are %d, more than one question to RabbitMQ has room for (500 queues, and some 7500 characters); divide them among several pools" .at (len .pool.models)) }}
{{- end }}
{{- if and $keda.seconds.enabled (not $keda.seconds.serverAddress) }}
{{- fail (printf "%s.autoscaling.keda.seconds.serverAddress: is not set, but seconds.enabled is; name the Prometheus, such as http://prometheus.monitoring:9090" .at) }}
{{- end }}
{{- $fullname := include "inferq.poolFullname" . }}
{{- if and $keda.seconds.enabled (not $keda.seconds.query) (gt (len $fullname) 46) }}
{{- fail (printf "%s.autoscaling.keda.seconds: the pool's name `%s` has %d characters; Kubernetes cuts the names of its pods from 47 on, and the query would not find them: shorten the release, the pool or fullnameOverride, or set seconds.query" .at $fullname (len $fullname)) }}
{{- end }}
{{- if and (eq $least 0) (not $keda.jobs.enabled) }}
{{- fail (printf "%s.autoscaling.minReplicas: is 0, but keda.jobs is off: without a worker nobody reports seconds of work, and the pool would stay at 0; enable keda.jobs, or set minReplicas to 1" .at) }}
{{- end }}
{{- if and (eq $least 0) (eq $values.topology.workerMode "declare") (not $values.topology.job.enabled) }}
{{- fail (printf "%s.autoscaling.minReplicas: is 0, but only a worker would declare the queues (topology.workerMode=declare), and without them nothing wakes one; enable topology.job, or set minReplicas to 1" .at) }}
{{- end }}
{{- $fallback := $keda.fallback.replicas }}
{{- if and $keda.fallback.enabled (ge $least 1) (not (kindIs "invalid" $fallback)) }}
{{- if or (lt (int64 $fallback) $least) (gt (int64 $fallback) (int64 .pool.autoscaling.maxReplicas)) }}
{{- fail (printf "%s.autoscaling.keda.fallback.replicas: is %d, but minReplicas is %d and maxReplicas %d; choose a number between them" .at (int64 $fallback) $least (int64 .pool.autoscaling.maxReplicas)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The rate, and the protocol that may stand in its way. */}}
{{- define "inferq.validateRate" -}}
{{- $keda := .pool.autoscaling.keda }}
{{- $source := include "inferq.rateSource" .pool }}
{{- $amqp := include "inferq.overAmqp" .pool }}
{{- if and $amqp (not (kindIs "invalid" $keda.jobs.timeoutMs)) }}
{{- fail (printf "%s.autoscaling.keda.jobs.timeoutMs: is set, but jobs.protocol is amqp, for which KEDA has no timeout; remove it" .at) }}
{{- end }}
{{- if and $amqp (eq $source "workers") (not $keda.seconds.serverAddress) }}
{{- fail (printf "%s.autoscaling.keda.rate.enabled: is set, but jobs.protocol is amqp, over which RabbitMQ tells how much waits and not how much comes; name a Prometheus in keda.seconds.serverAddress, which has the rate of the workers, or set rate.source to management if the management API of this broker has statistics" .at) }}
{{- end }}
{{- if and (has $source (list "broker" "workers")) (not $keda.seconds.serverAddress) }}
{{- fail (printf "%s.autoscaling.keda.rate.source: is %s, which is read in Prometheus, but keda.seconds.serverAddress is not set; name it, such as http://prometheus.monitoring:9090" .at $source) }}
{{- end }}
{{- if and (has $source (list "broker" "management")) (kindIs "invalid" $keda.rate.perReplica) }}
{{- fail (printf "%s.autoscaling.keda.rate.perReplica: is not set, but rate.enabled is; set the jobs/s that one worker is to carry, as `inferq bench --find-capacity` prints it" .at) }}
{{- end }}
{{- if and $keda.rate.query (not (has $source (list "broker" "workers"))) }}
{{- fail (printf "%s.autoscaling.keda.rate.query: is set, but no rate is read in Prometheus; set rate.enabled, and rate.source to workers or broker, or remove it" .at) }}
{{- end }}
{{- $fullname := include "inferq.poolFullname" . }}
{{- if and (eq $source "workers") (not $keda.rate.query) (gt (len $fullname) 46) }}
{{- fail (printf "%s.autoscaling.keda.rate: the pool's name `%s` has %d characters; Kubernetes cuts the names of its pods from 47 on, and the query would not find them: shorten the release, the pool or fullnameOverride, or set rate.query" .at $fullname (len $fullname)) }}
{{- end }}
{{- end }}

{{- define "inferq.validateMetrics" -}}
{{- $monitor := .Values.metrics.podMonitor }}
{{- if $monitor.enabled }}
{{- if gt (int64 (include "inferq.milliseconds" $monitor.scrapeTimeout)) (int64 (include "inferq.milliseconds" $monitor.interval)) }}
{{- fail (printf "metrics.podMonitor.scrapeTimeout: is %s, longer than interval, which is %s; Prometheus would refuse it: lower it" $monitor.scrapeTimeout $monitor.interval) }}
{{- end }}
{{- end }}
{{- $host := .Values.telemetry.host }}
{{- if and $monitor.enabled (has $host (list "127.0.0.1" "[::1]")) }}
{{- fail (printf "metrics.podMonitor.enabled: is set, but telemetry.host is %s, which Prometheus does not reach; set it to false and have the port of the proxy scraped, or set telemetry.host to 0.0.0.0 or [::]" $host) }}
{{- end }}
{{- $rules := .Values.metrics.prometheusRule }}
{{- $file := .Files.Get "alerts/inferq.yaml" }}
{{- if and $rules.enabled $rules.rules $file }}
{{- $known := list }}
{{- range ($file | fromYaml).groups }}{{ range .rules }}{{ with .alert }}{{ $known = append $known . }}{{ end }}{{ end }}{{ end }}
{{- range $name, $_ := $rules.rules }}
{{- if not (has $name $known) }}
{{- fail (printf "metrics.prometheusRule.rules.%s: there is no such alert; there are %s" $name (join ", " $known)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A duration of Prometheus, of one unit. */}}
{{- define "inferq.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . }}
{{- mul (trimSuffix $unit . | int64) (index (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) }}
{{- end }}

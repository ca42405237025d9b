{{/* KEDA's triggers that are not in scaledobject.yaml: on jobs over AMQP, and on rates. */}}

{{/* Where the rate of a pool is read: management, broker, workers, or nothing. Takes a pool. */}}
{{- define "inferq.rateSource" -}}
{{- $keda := .autoscaling.keda }}
{{- if and (eq .autoscaling.mode "keda") $keda.rate.enabled }}
{{- default (ternary "workers" "management" (include "inferq.overAmqp" . | eq "yes")) $keda.rate.source }}
{{- end }}
{{- end }}

{{- define "inferq.overAmqp" -}}
{{- if and (eq .autoscaling.mode "keda") .autoscaling.keda.jobs.enabled (eq .autoscaling.keda.jobs.protocol "amqp") }}yes{{ end }}
{{- end }}

{{/* Something if KEDA asks the management API for a pool. */}}
{{- define "inferq.asksManagement" -}}
{{- $jobs := and (eq .autoscaling.mode "keda") .autoscaling.keda.jobs.enabled (eq .autoscaling.keda.jobs.protocol "http") }}
{{- if or $jobs (eq (include "inferq.rateSource" .) "management") }}yes{{ end }}
{{- end }}

{{/* The TriggerAuthentication of the values for the management API; nothing if one has to be made. */}}
{{- define "inferq.managementExisting" -}}
{{- if not (include "inferq.overAmqp" .) }}{{ .autoscaling.keda.triggerAuthentication.existing }}{{ end }}
{{- end }}

{{- define "inferq.brokerRate" -}}
{{- if eq (include "inferq.rateSource" .) "broker" }}yes{{ end }}
{{- end }}

{{/* Something if the workers' own rate is followed. It is part of `seconds`, unless these come from a query of their own: then the
     pods may have any names. */}}
{{- define "inferq.workersRate" -}}
{{- $seconds := .autoscaling.keda.seconds }}
{{- if or (eq (include "inferq.rateSource" .) "workers") (and (eq .autoscaling.mode "keda") $seconds.enabled (not $seconds.query)) }}yes{{ end }}
{{- end }}

{{/* One trigger for each model: a passive declare knows one queue. Takes a dict of root, name and pool. */}}
{{- define "inferq.amqpTriggers" -}}
{{- $keda := .pool.autoscaling.keda }}
{{- $root := .root }}
{{- $one := eq (len .pool.models) 1 }}
{{- range $model := .pool.models }}
- type: rabbitmq
  name: {{ ternary "jobs" (printf "jobs-%s" $model) $one }}
  metricType: AverageValue
  metadata:
    protocol: amqp
    {{- with (include "inferq.brokerConfig" $root | fromJson).broker.uri }}
    host: {{ . | quote }}
    {{- end }}
    queueName: {{ printf "%s.%s" $root.Values.topology.prefix $model | quote }}
    mode: QueueLength
    value: {{ include "inferq.text" $keda.jobs.perReplica | quote }}
    activationValue: {{ include "inferq.text" $keda.jobs.activation | quote }}
  authenticationRef:
    name: {{ default (printf "%s-amqp" (include "inferq.fullname" $root)) $keda.triggerAuthentication.existing }}
    {{- if $keda.triggerAuthentication.existing }}
    kind: {{ $keda.triggerAuthentication.kind }}
    {{- end }}
{{- end }}
{{- end }}

{{/* The publish rate of all models together. It is active by the rules of the trigger on jobs. */}}
{{- define "inferq.managementRateTrigger" -}}
{{- $keda := .pool.autoscaling.keda }}
{{- $root := .root }}
{{- $existing := include "inferq.managementExisting" .pool }}
- type: rabbitmq
  name: rate
  metricType: AverageValue
  metadata:
    protocol: http
    {{- if $root.Values.broker.management.uri }}
    host: {{ include "inferq.kedaHost" $root | quote }}
    {{- else }}
    vhostName: {{ $root.Values.broker.vhost | quote }}
    {{- end }}
    {{- if eq (len .pool.models) 1 }}
    queueName: {{ printf "%s.%s" $root.Values.topology.prefix (first .pool.models) | quote }}
    {{- else }}
    queueName: {{ include "inferq.queuesPattern" . | quote }}
    useRegex: "true"
    operation: sum
    pageSize: {{ len .pool.models | quote }}
    {{- end }}
    mode: MessageRate
    value: {{ include "inferq.number" $keda.rate.perReplica | quote }}
    activationValue: {{ include "inferq.text" $keda.jobs.activation | quote }}
    {{- if and (not (kindIs "invalid" $keda.jobs.timeoutMs)) (eq $keda.jobs.protocol "http") }}
    timeout: {{ include "inferq.text" $keda.jobs.timeoutMs | quote }}
    {{- end }}
  authenticationRef:
    name: {{ default (printf "%s-management" (include "inferq.fullname" $root)) $existing }}
    {{- if $existing }}
    kind: {{ $keda.triggerAuthentication.kind }}
    {{- end }}
{{- end }}

{{/* Takes a dict of pool, name, query and threshold. */}}
{{- define "inferq.prometheusRateTrigger" -}}
{{- $seconds := .pool.autoscaling.keda.seconds }}
- type: prometheus
  name: {{ .name }}
  metricType: AverageValue
  metadata:
    serverAddress: {{ $seconds.serverAddress | quote }}
    query: {{ .query | quote }}
    threshold: {{ include "inferq.number" .threshold | quote }}
    ignoreNullValues: {{ eq (int64 .pool.autoscaling.minReplicas) 0 | quote }}
  {{- with $seconds.authenticationRef }}
  authenticationRef:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* How many workers the rows need that the pool settles: of what one worker can do of a model, 0.75. Where workers know it
     from having been saturated, estimates of others do not count. Workers without these metrics ask for nobody. */}}
{{- define "inferq.settledQuery" -}}
{{- $of := printf `{namespace="%s",pod=~"%s-[a-z0-9]+-[a-z0-9]+"}` .root.Release.Namespace (include "inferq.poolFullname" .) -}}
{{- $capacity := printf "inferq_capacity_rows_per_second%s > 0" $of -}}
sum(sum by (model) (rate(inferq_rows_settled_total{{ $of }}[{{ include "inferq.rateWindow" .root }}])) / (avg by (model) ({{ $capacity }} unless on (pod, model) inferq_capacity_is_estimate{{ $of }} == 1) or avg by (model) ({{ $capacity }}))) / 0.75 or 0 * sum(inferq_backlog_jobs{{ $of }})
{{- end }}

{{/* Jobs that are published a second to the queues of a pool, by RabbitMQ's own metrics: of newer ones by queue (4.3), else by channel. */}}
{{- define "inferq.publishedQuery" -}}
{{- $vhost := .root.Values.broker.vhost | toJson -}}
{{- $models := list }}
{{- range .pool.models }}{{ $models = append $models (regexQuoteMeta .) }}{{ end }}
{{- $queues := printf "%s\\.(%s)" (regexQuoteMeta .root.Values.topology.prefix) (join "|" $models) | toJson -}}
{{- $window := include "inferq.unknownWindow" .root -}}
sum(rate(rabbitmq_detailed_queue_exchange_messages_published_total{vhost={{ $vhost }},queue=~{{ $queues }}}[{{ $window }}])) or sum(rate(rabbitmq_detailed_queue_messages_published_total{queue_vhost={{ $vhost }},queue=~{{ $queues }}}[{{ $window }}])) or 0 * sum(rabbitmq_detailed_queue_messages{vhost={{ $vhost }},queue=~{{ $queues }}})
{{- end }}

{{/* Four scrapes, and no less than a minute. */}}
{{- define "inferq.rateWindow" -}}
{{- if .Values.metrics.podMonitor.enabled }}
{{- $interval := include "inferq.milliseconds" .Values.metrics.podMonitor.interval | int64 -}}
{{- max 60 (div (add (mul 4 $interval) 999) 1000) }}s
{{- else }}
{{- include "inferq.unknownWindow" . }}
{{- end }}
{{- end }}

{{/* Of what somebody else scrapes: two scrapes of a minute are in it, which is Prometheus' default. */}}
{{- define "inferq.unknownWindow" -}}150s{{- end }}

{{/* A number as text, with its fraction. */}}
{{- define "inferq.number" -}}
{{- $number := float64 . }}
{{- if eq $number (floor $number) }}{{ int64 $number }}{{ else }}{{ $number }}{{ end }}
{{- end }}

{{/* What the values say of each pool, put together. */}}

{{/* Merges the map "from" into the map "into". Sprig's mergeOverwrite keeps what a false, a 0 or an empty list should replace. */}}
{{- define "inferq.merge" -}}
{{- $into := .into }}
{{- range $key, $value := .from }}
{{- if and (kindIs "map" $value) (kindIs "map" (index $into $key)) }}
{{- include "inferq.merge" (dict "into" (index $into $key) "from" $value) }}
{{- else }}
{{- $_ := set $into $key $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fills the dict "into" with every enabled pool by its name. */}}
{{- define "inferq.pools" -}}
{{- $root := .root }}
{{- $into := .into }}
{{- range $name, $own := .root.Values.pools }}
{{- if not (kindIs "invalid" $own) }}
{{- $pool := deepCopy $root.Values.poolDefaults }}
{{- $image := default dict $own.image }}
{{- if and (or $image.tag $image.repository) (not $image.digest) }}{{ $_ := unset $pool.image "digest" }}{{ end }}
{{- include "inferq.merge" (dict "into" $pool "from" (deepCopy $own)) }}
{{- if $pool.enabled }}
{{- $_ := set $into $name $pool }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The models of all pools, each once, as a JSON list. */}}
{{- define "inferq.models" -}}
{{- $pools := dict }}
{{- include "inferq.pools" (dict "root" . "into" $pools) }}
{{- $models := list }}
{{- range $pools }}{{ $models = concat $models .models }}{{ end }}
{{- $models | uniq | sortAlpha | toJson }}
{{- end }}

{{/* The rows that `helm test` sends, by model, as a JSON map: of models that a pool serves and that have some. */}}
{{- define "inferq.testJobs" -}}
{{- $served := include "inferq.models" . | fromJsonArray }}
{{- $jobs := dict }}
{{- if .Values.test.enabled }}
{{- range $model, $rows := .Values.test.jobs }}
{{- if and $rows (has $model $served) }}{{ $_ := set $jobs $model $rows }}{{ end }}
{{- end }}
{{- end }}
{{- toJson $jobs }}
{{- end }}

{{- define "inferq.gracePeriod" -}}
{{- if kindIs "invalid" .terminationGracePeriodSeconds }}
{{- add (ceil .drainTimeoutSeconds | int64) 5 }}
{{- else }}
{{- int64 .terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{- define "inferq.modelPath" -}}
{{- default (ternary "/opt/inferq/models" "/models" (eq .modelRepository.source "image")) .modelRepository.path }}
{{- end }}

{{/* A quantity of Kubernetes in bytes; nothing for what is none. */}}
{{- define "inferq.bytes" -}}
{{- $text := include "inferq.text" . }}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- if regexMatch "^[0-9]+(\\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$" $text }}
{{- $number := regexFind "^[0-9.]+" $text }}
{{- $unit := trimPrefix $number $text }}
{{- mulf (float64 $number) (float64 (index $units $unit)) | int64 }}
{{- end }}
{{- end }}

{{/* The memory limit of a pool in bytes; nothing without one. */}}
{{- define "inferq.memoryLimit" -}}
{{- $limit := dig "limits" "memory" "" .resources }}
{{- if $limit }}{{ include "inferq.bytes" $limit }}{{ end }}
{{- end }}

{{/* The resources of a worker, with its GPUs. */}}
{{- define "inferq.resources" -}}
{{- $resources := deepCopy .resources }}
{{- range $part := list "requests" "limits" }}
{{- range $name, $quantity := index $resources $part }}
{{- if kindIs "invalid" $quantity }}{{ $_ := unset (index $resources $part) $name }}{{ end }}
{{- end }}
{{- end }}
{{- if eq .device "cuda" }}
{{- $limits := default dict $resources.limits }}
{{- if not (hasKey $limits .gpu.resource) }}{{ $_ := set $limits .gpu.resource (int64 .gpu.count) }}{{ end }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "inferq.tolerations" -}}
{{- $tolerations := .tolerations }}
{{- if and (eq .device "cuda") .gpu.tolerate }}
{{- $tolerations = append $tolerations (dict "key" .gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- if $tolerations }}{{ toYaml $tolerations }}{{ end }}
{{- end }}

{{/* Takes a dict of root, name and pool. */}}
{{- define "inferq.topologySpread" -}}
{{- $selector := dict "matchLabels" (include "inferq.poolSelectorLabels" . | fromYaml) }}
{{- $constraints := .pool.topologySpreadConstraints }}
{{- if kindIs "invalid" $constraints }}
{{- $constraints = list }}
{{- if eq .pool.device "cpu" }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway") }}
{{- end }}
{{- end }}
{{- end }}
{{- $complete := list }}
{{- range $constraints }}
{{- if hasKey . "labelSelector" }}
{{- $complete = append $complete . }}
{{- else }}
{{- $complete = append $complete (merge (dict "labelSelector" $selector) .) }}
{{- end }}
{{- end }}
{{- if $complete }}{{ toYaml $complete }}{{ end }}
{{- end }}

{{- define "inferq.strategy" -}}
{{- if .strategy }}
{{- toYaml .strategy }}
{{- else if eq .device "cuda" }}
{{- dict "type" "RollingUpdate" "rollingUpdate" (dict "maxSurge" 0 "maxUnavailable" 1) | toYaml }}
{{- else }}
{{- dict "type" "RollingUpdate" "rollingUpdate" (dict "maxSurge" 1 "maxUnavailable" 0) | toYaml }}
{{- end }}
{{- end }}

{{/* Something where a PodDisruptionBudget lets no worker of so few go. Takes a dict of budget and workers. */}}
{{- define "inferq.budgetBlocks" -}}
{{- $given := ternary .budget.maxUnavailable .budget.minAvailable (kindIs "invalid" .budget.minAvailable) }}
{{- $workers := float64 .workers }}
{{- $number := toString $given | trimSuffix "%" | float64 }}
{{- /* Kubernetes rounds both percentages up, so that of any workers a share above 0 lets one go. */}}
{{- if kindIs "invalid" .budget.minAvailable }}
{{- if eq $number 0.0 }}yes{{ end }}
{{- else }}
{{- if kindIs "string" $given }}{{ $number = mulf $workers 0.01 $number | ceil }}{{ end }}
{{- if and (gt $workers 0.0) (ge $number $workers) }}yes{{ end }}
{{- end }}
{{- end }}

{{- define "inferq.countsJobs" -}}
{{- if and (eq .autoscaling.mode "keda") .autoscaling.keda.jobs.enabled }}yes{{ end }}
{{- end }}

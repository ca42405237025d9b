{{/* Names and labels. */}}

{{- define "inferq.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 54 | trimSuffix "-" }}
{{- end }}

{{/* The release's name, with the chart's where it does not hold it. */}}
{{- define "inferq.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name }}
{{- end }}
{{- end }}
{{- end }}

{{- define "inferq.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "inferq.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels by which this release's pods are selected; they never change. */}}
{{- define "inferq.selectorLabels" -}}
app.kubernetes.io/name: {{ include "inferq.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "inferq.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "inferq.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Those of one pool. Takes a dict of root, name and pool. */}}
{{- define "inferq.poolSelectorLabels" -}}
{{ include "inferq.selectorLabels" .root }}
app.kubernetes.io/component: worker
inferq/pool: {{ .name }}
{{- end }}

{{- define "inferq.poolLabels" -}}
{{ include "inferq.labels" .root }}
app.kubernetes.io/component: worker
inferq/pool: {{ .name }}
{{- end }}

{{- define "inferq.poolFullname" -}}
{{ include "inferq.fullname" .root }}-{{ .name }}
{{- end }}

{{/* The image of a pool, or of the hooks. Takes a dict of root and image and device. */}}
{{- define "inferq.image" -}}
{{- $image := deepCopy .root.Values.image }}
{{- /* A digest belongs to one image: it does not come with another repository or tag. */}}
{{- if or .image.tag .image.repository }}{{ $_ := unset $image "digest" }}{{ end }}
{{- include "inferq.merge" (dict "into" $image "from" .image) }}
{{- $name := $image.repository }}
{{- if $image.registry }}{{ $name = printf "%s/%s" $image.registry $image.repository }}{{ end }}
{{- $suffix := ternary $image.cudaTagSuffix "" (eq .device "cuda") }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default (printf "%s%s" .root.Chart.AppVersion $suffix) $image.tag) }}
{{- end }}
{{- end }}

{{- define "inferq.pullPolicy" -}}
{{- default .root.Values.image.pullPolicy .image.pullPolicy }}
{{- end }}

{{/* Where the pods of hooks may run. */}}
{{- define "inferq.hookPlacement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $.Values.hookPods $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

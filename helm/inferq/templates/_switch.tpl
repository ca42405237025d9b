{{/* Who sets the number of workers may change from one release to the next, and most of them may end over it: the chart looks before. */}}

{{/* The Deployment of a pool as it is in the cluster, as JSON; `{}` where there is none, or where templates cannot look: `helm template`,
     Argo CD. Takes a dict of root, name and pool. */}}
{{- define "inferq.live" -}}
{{- lookup "apps/v1" "Deployment" .root.Release.Namespace (include "inferq.poolFullname" .) | default dict | toJson }}
{{- end }}

{{/* Something where the number of workers goes with the manifest that no longer has it, so that Kubernetes' default, 1, takes its place. Takes
     a Deployment. Applied by the server, a field goes if nobody else has set it since; patched by the client, if the manifest before had
     it, whoever has set it since. Which mode that was is noted in an annotation, and before there was one, in who wrote the number. */}}
{{- define "inferq.losesReplicas" -}}
{{- $metadata := default dict .metadata }}
{{- $applied := list }}
{{- $owners := list }}
{{- range $metadata.managedFields }}
{{- $owns := hasKey (dig "fieldsV1" "f:spec" (dict) . | default dict) "f:replicas" }}
{{- if eq (default "" .operation) "Apply" }}{{ $applied = append $applied $owns }}{{ end }}
{{- if $owns }}{{ $owners = append $owners (default "" .manager) }}{{ end }}
{{- end }}
{{- if $applied }}
{{- if and (has true $applied) (eq (len $owners) 1) }}yes{{ end }}
{{- else if hasKey (default dict $metadata.annotations) "inferq/autoscaling" }}
{{- if eq (index $metadata.annotations "inferq/autoscaling") "none" }}yes{{ end }}
{{- else if or (not $metadata.managedFields) (has "helm" $owners) }}
{{- print "yes" }}
{{- end }}
{{- end }}

{{/* Refuses what would end workers that nobody has asked to end. Takes a dict of root, name, pool and at. */}}
{{- define "inferq.validateSwitch" -}}
{{- $scaling := .pool.autoscaling }}
{{- $live := include "inferq.live" . | fromJson }}
{{- $workers := dig "spec" "replicas" 1 $live | int64 }}
{{- $deployment := include "inferq.poolFullname" . }}
{{- if and $live (gt $workers 1) (not $scaling.switchMayEndWorkers) }}
{{- if and (eq $scaling.mode "none") (kindIs "invalid" .pool.replicas) }}
{{- fail (printf "%s.replicas: is not set, which with autoscaling.mode none means 1 worker, but Deployment %s has %d, of which all but one would end at once; set replicas to the number that is meant" .at $deployment $workers) }}
{{- end }}
{{- if and (ne $scaling.mode "none") (include "inferq.losesReplicas" $live) }}
{{- fail (printf "%s.autoscaling.mode: is %s, with which the number of workers leaves the manifest, and Kubernetes would end at once all but one of the %d workers of Deployment %s; with server-side apply, as Helm 4 does it, run `kubectl scale deployment %s --namespace %s --replicas %d` first (any other number than now), with which it is no longer Helm's to take away; without it, set %s.autoscaling.switchMayEndWorkers=true, at a quiet hour" .at $scaling.mode $workers $deployment $deployment .root.Release.Namespace (add $workers 1) .at) }}
{{- end }}
{{- end }}
{{- end }}

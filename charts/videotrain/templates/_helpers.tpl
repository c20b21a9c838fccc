{{- define "videotrain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of the names of all objects: at most 40 characters, so that suffixes and namespaces fit. */}}
{{- define "videotrain.fullname" -}}
{{- $name := include "videotrain.name" . }}
{{- $prefix := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $prefix .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Objects outside of namespaces carry the release's namespace in their names: two releases may share a name. */}}
{{- define "videotrain.clusterName" -}}
{{- printf "%s.%s" (include "videotrain.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "videotrain.webhookName" -}}
{{- printf "%s-webhook" (include "videotrain.fullname" .) }}
{{- end }}

{{/* Another name for cert-manager's: what it finds under the first would say that it is the operator's. */}}
{{- define "videotrain.webhookSecretName" -}}
{{- printf "%s%s" (include "videotrain.webhookName" .) (ternary "-cert" "" .Values.webhook.certManager.enabled) }}
{{- end }}

{{- define "videotrain.keyName" -}}
{{- printf "%s-key" (include "videotrain.fullname" .) }}
{{- end }}

{{- define "videotrain.runDefaultsName" -}}
{{- printf "%s-run-defaults" (include "videotrain.fullname" .) }}
{{- end }}

{{/* The defaults for runs that are set, as JSON; a TTL of 0 is one. */}}
{{- define "videotrain.runDefaults" -}}
{{- $given := dict }}
{{- range $name, $value := .Values.runDefaults }}
{{- if or $value (has (kindOf $value) (list "int" "int64" "float64")) }}
{{- $_ := set $given $name $value }}
{{- end }}
{{- end }}
{{- range .Values.runDefaults.enforced }}
{{- if not (or (hasKey $given .) (has . (list "tolerations" "imagePullSecrets"))) }}
{{- fail (printf "runDefaults.enforced: %s: there is no such default to enforce; set runDefaults.%s" . .) }}
{{- end }}
{{- end }}
{{- toJson $given }}
{{- end }}

{{- define "videotrain.serviceAccountName" -}}
{{- default (include "videotrain.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "videotrain.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "videotrain.selectorLabels" -}}
app.kubernetes.io/name: {{ include "videotrain.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "videotrain.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "videotrain.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: videotrain
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The binding of a role to the operator's service account. */}}
{{- define "videotrain.subjects" -}}
- kind: ServiceAccount
  name: {{ include "videotrain.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* Who brought the CRD into the cluster, if that was not this release; nothing without a cluster to ask. */}}
{{- define "videotrain.otherOwner" -}}
{{- $found := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name }}
{{- if and $found (not .root.Values.crds.adopt) }}
{{- $of := dig "metadata" "annotations" dict $found }}
{{- $release := dig "meta.helm.sh/release-name" "" $of }}
{{- $namespace := dig "meta.helm.sh/release-namespace" "" $of }}
{{- if not $release }}
{{- print "somebody without Helm" }}
{{- else if or (ne $release .root.Release.Name) (ne $namespace .root.Release.Namespace) }}
{{- printf "the release %s in namespace %s" $release $namespace }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the operator's network policies for runs allow, as JSON. */}}
{{- define "videotrain.runNetworks" -}}
{{- $operator := dict
      "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace))
      "podSelector" (dict "matchLabels" (include "videotrain.selectorLabels" . | fromYaml)) }}
{{- $prometheus := dict
      "namespaceSelector" dict
      "podSelector" (dict "matchLabels" (dict "app.kubernetes.io/name" "prometheus")) }}
{{- $metrics := default (ternary (list $prometheus) list .Values.monitoring.podMonitor.enabled) .Values.networkPolicy.metricsFrom }}
{{- with .Values.networkPolicy.runs }}
{{- dict "operator" (list $operator) "metrics" $metrics "dns" .dnsTo "storagePorts" .storagePorts
      "metadataServices" .metadataServices "ingress" .ingress "egress" .egress | toJson }}
{{- end }}
{{- end }}

{{/* The object store for bills, as JSON. */}}
{{- define "videotrain.billStorage" -}}
{{- $place := pick .Values.bills "uri" "region" }}
{{- with .Values.bills.endpointUrl }}
{{- $_ := set $place "endpointUrl" . }}
{{- end }}
{{- toJson $place }}
{{- end }}

{{/* A text with the links to pages of docs/runbook as they are served; a site shows README.md as its folder. */}}
{{- define "videotrain.runbooks" -}}
{{- $monitoring := (index . 0).Values.monitoring -}}
{{- $index := ternary "README.md" "" (eq $monitoring.runbookSuffix ".md") -}}
{{- $text := index . 1 | replace "docs/runbook/README.md" (printf "%s/%s" $monitoring.runbooks $index) -}}
{{- regexReplaceAll "docs/runbook/([^\"() ]+)\\.md" $text (printf "%s/${1}%s" $monitoring.runbooks $monitoring.runbookSuffix) -}}
{{- end }}

// Says what is amiss with Grafana dashboards, by the types that Grafana's makers publish for each of its versions.
//
//     node dashboards.js FILE ...

const fs = require("node:fs");
const path = require("node:path");
const ts = require("typescript");

const MODULES = process.env.NODE_PATH;
const VERSIONS = [10, 11, 12];
const NAMES = {
  heatmap: "Heatmap", stat: "Stat", "state-timeline": "StateTimeline", table: "Table", timeseries: "TimeSeries",
};

// Grafana's types name values of enums, which JSON has as texts, and demand of panels what has a default.
const PLAIN = `
  type Plain<T> = T extends string ? \`\${T}\` : T extends number | boolean | null | undefined ? T
    : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
  type Some<T> = T extends string ? \`\${T}\` : T extends number | boolean | null | undefined ? T
    : T extends (infer U)[] ? Some<U>[] : T extends object ? { [K in keyof T]?: Some<T[K]> } : T;
`;

function source(dashboard, version) {
  const schema = `grafana-schema-${version}`;
  const all = dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]).filter(({ type }) => type !== "row");
  const imports = Object.entries(NAMES).map(([type, name]) =>
    `import type * as ${name} from "${schema}/dist/esm/raw/composable/${type.replace("-", "")}/panelcfg/x/${name}PanelCfg_types.gen";`);
  const panels = all.map(({ type, options, fieldConfig, targets }, number) => {
    const name = NAMES[type];
    const custom = fieldConfig.defaults.custom;
    return `
      const options${number}: Some<${name}.Options> = ${JSON.stringify(options)};
      ${custom ? `const custom${number}: Some<${name}.FieldConfig> = ${JSON.stringify(custom)};` : ""}
      ${version === 10 ? `const targets${number}: Some<Query>[] = ${JSON.stringify(targets)};` : ""}`;
  });
  return `
    import type { Dashboard } from "${schema}";
    ${version === 10 ? `import type { PrometheusDataQuery as Query } from "${schema}/dist/esm/raw/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen";` : ""}
    ${imports.join("\n")}
    ${PLAIN}
    const dashboard: Plain<Dashboard> = ${JSON.stringify(dashboard, null, 1)};
    ${panels.join("\n")}`;
}

function faults(dashboard, version) {
  const file = path.join(MODULES, `dashboard-${version}.ts`); // In memory only; there, types are found.
  const options = {
    strict: true, noEmit: true, skipLibCheck: true, types: [], target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.CommonJS, moduleResolution: ts.ModuleResolutionKind.Node10,
    // By this name the types of panels speak of what they share.
    baseUrl: MODULES, paths: { "@grafana/schema": [`grafana-schema-${version}`] },
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists, readFile } = host;
  const text = source(dashboard, version);
  host.getSourceFile = (name, ...rest) =>
    name === file ? ts.createSourceFile(name, text, options.target) : getSourceFile.call(host, name, ...rest);
  host.fileExists = (name) => name === file || fileExists.call(host, name);
  host.readFile = (name) => (name === file ? text : readFile.call(host, name));
  const program = ts.createProgram([file], options, host);
  return ts.getPreEmitDiagnostics(program).map(({ messageText, start, file: at }) => {
    const line = at?.text.slice(start).split("\n")[0].slice(0, 80);
    return `Grafana ${version}: ${ts.flattenDiagnosticMessageText(messageText, " ")} at ${line}`;
  });
}

let failed = false;
for (const name of process.argv.slice(2)) {
  const dashboard = JSON.parse(fs.readFileSync(name, "utf8"));
  for (const fault of VERSIONS.flatMap((version) => faults(dashboard, version))) {
    console.error(`${path.basename(name)}: ${fault}`);
    failed = true;
  }
}
process.exit(failed ? 1 : 0);

/// What a run is told: the keys of `federation.yaml`, each of which is also a flag, and their defaults.

import ArgumentParser
import Plan
import PlanOptions
import Primitives
import Transport

struct StartOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The base model's folder, or a GGUF file; it is only hashed.", valueName: "folder"))
    var model: String?
    @Option(help: ArgumentHelp("Where clients connect (default: \(Settings.defaultListen)).", valueName: "tcp://HOST:PORT"))
    var listen: String?
    @Option(help: ArgumentHelp("The run's state, one SQLite file (default: state.sqlite in --output).", valueName: "file"))
    var state: String?
    @Option(
        help: ArgumentHelp(
            "Where adapter, metrics.jsonl and run.json are written (default: \(Settings.defaultOutput)).", valueName: "folder"))
    var output: String?
    @Option(help: "The run starts when so many clients have joined.")
    var minClients: Int?
    @OptionGroup(title: "The plan") var plan: PlanOptions

    /// Every key of `federation.yaml`.
    static let keys: [ConfigurationKey<StartOptions>] =
        [
            .init("model", \.model),
            .init("listen", \.listen),
            .init("state", \.state),
            .init("output", \.output),
            .init("min_clients", \.minClients, plan: \.minimumClients),
        ] + PlanOptions.keys.map { $0.within(\.plan) }
}

/// The options with their defaults.
struct Settings {
    static let defaultListen = "tcp://0.0.0.0:7400"
    static let defaultOutput = "run"

    let model: String
    let listen: TransportAddress
    let state: String
    let output: String
    let initialAdapter: String?
    /// Without what the model's files decide: digests.
    let plan: FederationPlan

    init(_ options: StartOptions) throws(Failure) {
        guard let model = options.model else {
            throw Failure(.usage, "no base model is given: use --model FOLDER, or the key model in the configuration file")
        }
        self.model = model
        listen = try TransportAddress(listening: options.listen ?? Self.defaultListen)
        output = options.output ?? Self.defaultOutput
        state = options.state ?? output + "/" + StateFile.defaultName
        initialAdapter = options.plan.initAdapter
        var plan = FederationPlan()
        for key in StartOptions.keys { key.apply(options, &plan) }
        plan.ranks = Set(plan.ranks).sorted()
        options.plan.settle(&plan)
        try PlanOptions.readLabels(&plan)
        self.plan = plan
    }
}

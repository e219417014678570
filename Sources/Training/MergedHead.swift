/// A classifier's head in a merged model: its tensors in the place of the base's, and what config.json says about it.

import Adapters
import Checkpoints
import Primitives

/// What becomes of the head when an adapter is merged into its base.
struct MergedHead {
    /// The adapter's; empty if it has none, and the base keeps its own.
    let entries: [PEFTAdapter.HeadEntry]
    /// The adapter's names of them; empty if it has none.
    private let labels: [String]
    private let configuration: ModelConfiguration

    /// - Throws: `Failure` if the head belongs to another base
    init(_ adapter: PEFTAdapter, _ configuration: ModelConfiguration) throws(Failure) {
        entries = adapter.head
        labels = adapter.labels
        self.configuration = configuration
        guard let last = entries.last else { return }
        let needed = configuration.head(labelCount: last.outputs)
        guard needed == entries.map({ LinearMap(name: $0.map, outputs: $0.outputs, inputs: $0.inputs) }) else {
            throw Failure(
                .badData,
                "\(adapter.origin) belongs to another base model: it has the head \(entries.map(\.map).joined(separator: ", ")), and this \(configuration.architecture.rawValue) model \(needed.isEmpty ? "has none" : "needs " + needed.map { "\($0.name) of \($0.outputs) x \($0.inputs)" }.joined(separator: ", "))"
            )
        }
    }

    /// Whether a tensor of the base gives way: the base's own head, and that of its pretraining.
    func replaces(_ name: String) -> Bool {
        guard !entries.isEmpty else { return false }
        return ["classifier.", "cls.", "lm_head."].contains { name.hasPrefix($0) }
    }

    var declarations: [TensorDeclaration] {
        entries.flatMap {
            [
                TensorDeclaration(name: $0.map + ".weight", dtype: .f32, shape: [$0.outputs, $0.inputs]),
                TensorDeclaration(name: $0.map + ".bias", dtype: .f32, shape: [$0.outputs]),
            ]
        }
    }

    /// The values of one of the declarations.
    func values(_ name: String) -> [Float]? {
        for entry in entries {
            if name == entry.map + ".weight" { return entry.weight }
            if name == entry.map + ".bias" { return entry.bias }
        }
        return nil
    }

    /// config.json with the class that has the head, where there is one, and the labels of the head: the adapter's names, or
    /// LABEL_0, LABEL_1, ... where nobody knows them; those of the base need not be what the adapter was trained for.
    func configure(_ json: JSONValue) -> JSONValue {
        guard let count = entries.last?.outputs, let encoder = configuration.encoder else { return json }
        var json = json
        if encoder.summary != .mean {
            let family = configuration.architecture == .bert ? "Bert" : "Roberta"
            json.set("architectures", .array([.string(family + "ForSequenceClassification")]))
        }
        let names = labels.count == count ? labels : (0..<count).map { "LABEL_\($0)" }
        json.set("id2label", .object(names.enumerated().map { .init(String($0), .string($1)) }))
        json.set("label2id", .object(names.enumerated().map { .init($1, .integer($0)) }))
        return json
    }
}

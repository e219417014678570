/// Small random encoders at odd shapes, with a classifier's head, and batches for them.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport

struct TinyEncoder {
    var architecture = Architecture.bert
    /// `architectures` of config.json, after BERT's or RoBERTa's name.
    var form = "ForSequenceClassification"
    var hidden = 21
    var intermediate = 23
    var layers = 2
    var heads = 3
    var vocabulary = 37
    var labels = 3
    var positions = 90
    var hasOldNormNames = false

    var family: String { architecture == .bert ? "Bert" : "Roberta" }

    /// Writes the checkpoint into a folder, without a head of its own.
    func write(to folder: String) throws {
        let text = """
            {"architectures": ["\(family)\(form)"], "model_type": "\(architecture.rawValue)", "hidden_size": \(hidden),
             "intermediate_size": \(intermediate), "num_hidden_layers": \(layers), "num_attention_heads": \(heads),
             "vocab_size": \(vocabulary), "max_position_embeddings": \(positions), "layer_norm_eps": 1e-05,
             "hidden_act": "gelu", "type_vocab_size": 2, "pad_token_id": 1}
            """
        try writeFile(folder + "/config.json", Array(text.utf8))
        let configuration = try ModelConfiguration(folder: folder)
        var generator = SeededGenerator(seed: 1, purpose: "tiny")
        var tensors: [(name: String, shape: [Int], values: [Float])] = []
        for (name, shape) in configuration.denseTensors {
            let isNorm = name.hasSuffix("LayerNorm.weight")
            let stored =
                hasOldNormNames
                ? name.replacing("LayerNorm.weight", with: "LayerNorm.gamma").replacing("LayerNorm.bias", with: "LayerNorm.beta")
                : name
            tensors.append(
                (
                    stored, shape,
                    (0..<shape.reduce(1, *)).map { _ in isNorm ? 1 + 0.3 * generator.symmetric(1) : generator.symmetric(0.7) }
                ))
        }
        for map in configuration.linearMaps {
            let bound = 2 / Float(map.inputs).squareRoot()
            tensors.append(
                (
                    map.name + ".weight", [map.outputs, map.inputs],
                    (0..<map.outputs * map.inputs).map { _ in generator.symmetric(bound) }
                ))
        }
        try writeSafetensors(folder + "/model.safetensors", floats: tensors)
    }

    func load(_ form: WeightForm = .stored, compute: ComputeChoice = .float32) throws -> LanguageModel {
        let folder = TemporaryFolder()
        try write(to: folder.path)
        return try LanguageModel(
            checkpoint: try CheckpointFolder(path: folder.path), quantization: form, compute: compute,
            task: .classify(labelCount: labels))
    }

    /// Sequences of these lengths with random tokens and labels.
    func batch(_ lengths: [Int], seed: UInt64 = 2) -> TokenBatch {
        var generator = SeededGenerator(seed: seed, purpose: "batch")
        var starts = [0]
        for length in lengths { starts.append(starts.last! + length) }
        return TokenBatch(
            tokens: (0..<starts.last!).map { _ in Int32(generator.integer(below: vocabulary)) }, starts: starts,
            labels: lengths.map { _ in Int32(generator.integer(below: labels)) })
    }
}

/// Small random models at odd shapes, and batches for them.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

struct TinyModel {
    var architecture = Architecture.llama
    var hidden = 21
    var intermediate = 23
    var layers = 2
    var heads = 3
    var keyValueHeads = 1
    var headSize = 6
    var vocabulary = 37
    var tied = false
    var biases = false
    var maximumPositions = 4096
    var scaling: String? = nil

    /// Writes the checkpoint into a temporary folder, loads it, and removes the folder.
    func load(_ form: WeightForm = .stored, compute: ComputeChoice = .float32) throws -> LanguageModel {
        let folder = TemporaryFolder()
        try write(to: folder.path)
        return try LanguageModel(checkpoint: try CheckpointFolder(path: folder.path), quantization: form, compute: compute)
    }

    /// Writes the checkpoint into a folder.
    func write(to folder: String) throws {
        let name = ["llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"][architecture.rawValue]!
        let text = """
            {"architectures": ["\(name)"], "model_type": "\(architecture.rawValue)", "hidden_size": \(hidden),
             "intermediate_size": \(intermediate), "num_hidden_layers": \(layers), "num_attention_heads": \(heads),
             "num_key_value_heads": \(keyValueHeads), "head_dim": \(headSize), "vocab_size": \(vocabulary),
             "max_position_embeddings": \(maximumPositions), "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu",
             "tie_word_embeddings": \(tied), "attention_bias": \(biases), "mlp_bias": false, "use_sliding_window": false,
             \(scaling.map { "\"rope_scaling\": \($0)," } ?? "")
             "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
            """
        try writeFile(folder + "/config.json", Array(text.utf8))
        let configuration = try ModelConfiguration(folder: folder)
        var generator = SeededGenerator(seed: 1, purpose: "tiny")
        var tensors: [(name: String, shape: [Int], values: [Float])] = []
        for (name, shape) in configuration.denseTensors {
            let isNorm = name.contains("norm")
            tensors.append(
                (
                    name, shape,
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

    /// Sequences of these lengths with random tokens; about two thirds of them are targets.
    func batch(_ lengths: [Int], seed: UInt64 = 2) -> TokenBatch {
        var generator = SeededGenerator(seed: seed, purpose: "batch")
        let count = lengths.reduce(0, +)
        var starts = [0]
        for length in lengths { starts.append(starts.last! + length) }
        return TokenBatch(
            tokens: (0..<count).map { _ in Int32(generator.integer(below: vocabulary)) }, starts: starts,
            targets: (0..<count).map { _ in generator.integer(below: 3) > 0 })
    }
}

/// Adapter weights with every tensor random, so that each one's gradient matters.
func randomWeights(
    _ specification: AdapterSpecification, correctionRank: Int? = nil, seed: UInt64 = 3
) -> AdapterWeights {
    var generator = SeededGenerator(seed: seed, purpose: "weights")
    func fill(_ layout: AdapterLayout) -> AdapterState {
        var state = AdapterState(zeros: layout)
        for (index, tensor) in layout.tensors.enumerated() {
            let bound = 1 / Float(tensor.columns).squareRoot()
            for position in layout.range(index) { state.values[position] = generator.symmetric(bound) }
        }
        return state
    }
    return AdapterWeights(
        trained: fill(specification.trainedLayout), frozen: specification.frozenLayout.map(fill),
        correction: correctionRank.map { fill(AdapterSpecification.stackLayout(maps: specification.maps, rank: $0)) })
}

/// The same values in every form, with the name of each.
func weightForms(_ values: [Float], _ rows: Int, _ columns: Int) throws -> [(name: String, matrix: QuantizedMatrix)] {
    let folder = TemporaryFolder()
    let path = folder.path + "/forms.safetensors"
    let half: [Float16] = values.map { Float16($0) }
    let bfloat = values.map(bfloat16Bits)
    try writeSafetensors(
        path,
        tensors: [
            // Seven bytes first, so that the others lie at odd addresses.
            (name: "a", type: .u8, shape: [7], bytes: [UInt8](repeating: 0, count: 7)),
            (name: "b", type: .bf16, shape: [rows, columns], bytes: bfloat.withUnsafeBytes { Array($0) }),
            (name: "c", type: .f16, shape: [rows, columns], bytes: half.withUnsafeBytes { Array($0) }),
        ], metadata: [:])
    let file = try SafetensorsFile(path: path)
    return [
        ("f32", QuantizedMatrix(values, rows: rows, columns: columns)),
        ("bf16", try QuantizedMatrix(stored: try #require(file.tensors["b"]), rows: rows, columns: columns)),
        ("f16", try QuantizedMatrix(stored: try #require(file.tensors["c"]), rows: rows, columns: columns)),
        ("nf4", QuantizedMatrix(try NF4.encode(values, nested: false), rows: rows, columns: columns)),
        ("nf4 nested, 32", QuantizedMatrix(try NF4.encode(values, blockSize: 32), rows: rows, columns: columns)),
        ("nf4 nested, 256", QuantizedMatrix(try NF4.encode(values, blockSize: 256), rows: rows, columns: columns)),
        ("int8", QuantizedMatrix(try Int8Codes(values, rows: rows, columns: columns), rows: rows, columns: columns)),
    ]
}

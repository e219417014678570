/// How a conversation becomes text for a model: which special tokens stand around each turn.
///
/// A model's folder holds its template as a Jinja program. We do not run Jinja: the templates that the supported
/// model families use are written out here, and a model's own is recognised by its distinctive parts.

import Primitives

public struct ChatTemplate: Equatable, Sendable {
    public enum Style: Equatable, Sendable {
        /// `<|im_start|>ROLE\nCONTENT<|im_end|>\n`; with a system turn of its own where a conversation has none.
        case chatML(standardSystem: String?)
        /// ChatML where the last answer carries its thoughts, or none, in `<think>` and earlier ones do not.
        case qwen3
        /// `<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>`; from 3.1 on always with a system turn that
        /// holds two dates.
        case llama3(dates: Bool)
    }

    /// What `--chat-template` calls it.
    public let name: String
    public let style: Style

    public static let all: [ChatTemplate] = [
        ChatTemplate(name: "chatml", style: .chatML(standardSystem: nil)),
        ChatTemplate(
            name: "smollm2",
            style: .chatML(standardSystem: "You are a helpful AI assistant named SmolLM, trained by Hugging Face")),
        ChatTemplate(name: "qwen2", style: .chatML(standardSystem: "You are a helpful assistant.")),
        ChatTemplate(
            name: "qwen2.5",
            style: .chatML(standardSystem: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")),
        ChatTemplate(name: "qwen3", style: .qwen3),
        ChatTemplate(name: "llama3", style: .llama3(dates: false)),
        ChatTemplate(name: "llama3.1", style: .llama3(dates: true)),
    ]

    public static func named(_ name: String) throws(Failure) -> ChatTemplate {
        guard let template = all.first(where: { $0.name == name }) else {
            throw Failure(.usage, "there is no chat template \"\(name)\"; known are \(all.map(\.name).joined(separator: ", "))")
        }
        return template
    }

    /// A part of the text, in order.
    enum Part: Equatable {
        /// One special token, by its content; a target where it ends an answer.
        case special(String, isTarget: Bool = false)
        case text(String, isTarget: Bool = false)
    }

    /// - Returns: one list of parts for each turn, those of a turn that the template adds included
    /// - Throws: a sentence without its place, which the caller knows.
    func turns(_ messages: [ChatMessage]) throws(ChatTemplateError) -> [[Part]] {
        switch style {
        case .chatML(let standardSystem):
            var messages = messages
            if let standardSystem, messages.first?.role != "system" {
                messages.insert(ChatMessage(role: "system", content: standardSystem), at: 0)
            }
            return try messages.map { message throws(ChatTemplateError) in
                try refuseTools(message)
                return chatML(message.role, thoughts: nil, message.content)
            }
        case .qwen3: return try qwen3(messages)
        case .llama3(let dates):
            var messages = messages.map { ChatMessage(role: $0.role, content: trimmed($0.content)) }
            if dates {
                var system = ""
                if messages.first?.role == "system" { system = messages.removeFirst().content }
                // The dates are the template's own default, so that the same data gives the same tokens every day.
                system = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" + system
                messages.insert(ChatMessage(role: "system", content: system), at: 0)
            }
            return try messages.enumerated().map { index, message throws(ChatTemplateError) in
                try refuseTools(message)
                let begin: [Part] = index == 0 ? [.special("<|begin_of_text|>")] : []
                return begin + [
                    .special("<|start_header_id|>"), .text(message.role), .special("<|end_header_id|>"), .text("\n\n"),
                    .text(message.content, isTarget: message.isAssistant),
                    .special("<|eot_id|>", isTarget: message.isAssistant),
                ]
            }
        }
    }

    private func chatML(_ role: String, thoughts: String?, _ content: String) -> [Part] {
        let isTarget = role == "assistant"
        return [.special("<|im_start|>"), .text(role + "\n" + (thoughts ?? "")), .text(content, isTarget: isTarget)]
            + [.special("<|im_end|>", isTarget: isTarget), .text("\n")]
    }

    private func qwen3(_ messages: [ChatMessage]) throws(ChatTemplateError) -> [[Part]] {
        let lastQuestion =
            messages.lastIndex {
                $0.role == "user" && !($0.content.hasPrefix("<tool_response>") && $0.content.hasSuffix("</tool_response>"))
            } ?? messages.count - 1
        return try messages.enumerated().map { index, message throws(ChatTemplateError) in
            try refuseTools(message)
            guard message.isAssistant else { return chatML(message.role, thoughts: nil, message.content) }
            let (thoughts, content) = Self.separateThoughts(message.content)
            guard index > lastQuestion, index == messages.count - 1 || !thoughts.isEmpty else {
                return chatML(message.role, thoughts: nil, content)
            }
            let answer = String(Substring(content).drop { $0 == "\n" })
            // No thoughts: what the template puts there when thinking is off, which is no part of the answer.
            if thoughts.isEmpty { return chatML(message.role, thoughts: "<think>\n\n</think>\n\n", answer) }
            return chatML(message.role, thoughts: nil, "<think>\n\(thoughts)\n</think>\n\n\(answer)")
        }
    }

    /// What stands in `<think>...</think>`, and what follows it.
    static func separateThoughts(_ content: String) -> (thoughts: String, content: String) {
        let bytes = Array(content.utf8)
        let (open, close) = (Array("<think>".utf8), Array("</think>".utf8))
        func strip(_ text: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
            var text = text.drop { $0 == 0x0A }
            while text.last == 0x0A { text.removeLast() }
            return text
        }
        guard let first = bytes.indices.first(where: { bytes[$0...].starts(with: close) }),
            let last = bytes.indices.last(where: { bytes[$0...].starts(with: close) })
        else { return ("", content) }
        var thoughts = bytes[..<first]
        if let start = thoughts.indices.last(where: { thoughts[$0...].starts(with: open) }) {
            thoughts = thoughts[(start + open.count)...]
        }
        return (
            String(decoding: strip(thoughts), as: UTF8.self),
            String(decoding: bytes[(last + close.count)...].drop { $0 == 0x0A }, as: UTF8.self)
        )
    }

    private func refuseTools(_ message: ChatMessage) throws(ChatTemplateError) {
        let isPlain = name == "chatml" || ["system", "user", "assistant"].contains(message.role)
        guard isPlain, !message.role.isEmpty else {
            throw ChatTemplateError(
                sentence:
                    "the role \"\(message.role)\" is not supported by the chat template \(name), only system, user and assistant")
        }
    }

    /// Without white space at both ends, as Jinja's `trim`.
    private func trimmed(_ text: String) -> String {
        var scalars = Substring(text).unicodeScalars
        while scalars.first?.properties.isWhitespace == true { scalars.removeFirst() }
        while scalars.last?.properties.isWhitespace == true { scalars.removeLast() }
        return String(Substring(scalars))
    }
}

/// Why a conversation does not fit a template: half a sentence, to which the caller adds the file and the line.
public struct ChatTemplateError: Error, Equatable, Sendable {
    public let sentence: String
}

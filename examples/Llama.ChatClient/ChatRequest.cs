using Microsoft.Extensions.AI;
using Mustafar.Examples.Llama.Chat;
using Mustafar.Examples.Llama.Generation;

namespace Mustafar.Examples.Llama;

/// <summary>What a caller asks for, in the terms of the model. What the model can't do is refused, never ignored.</summary>
/// <param name="Turns">The chat.</param>
/// <param name="Sampling">How tokens are chosen.</param>
/// <param name="MaxTokens">Tokens to generate at most.</param>
/// <param name="StopSequences">Texts that end the reply.</param>
internal sealed record ChatRequest(
    IReadOnlyList<ChatTurn> Turns, SamplingOptions Sampling, int MaxTokens, IReadOnlyList<string> StopSequences)
{
    /// <summary>Reads messages and options.</summary>
    /// <param name="messages">The chat.</param>
    /// <param name="options">The options; none if null.</param>
    /// <param name="modelId">Name of the model.</param>
    /// <param name="defaultMaxTokens">Tokens to generate at most where the options don't say.</param>
    /// <exception cref="NotSupportedException">A message or an option needs what the model can't do.</exception>
    /// <exception cref="ArgumentException">A value is out of range.</exception>
    public static ChatRequest Read(IEnumerable<ChatMessage> messages, ChatOptions? options, string modelId, int defaultMaxTokens)
    {
        Refuse(options?.Tools is { Count: > 0 }, nameof(ChatOptions.Tools));
        Refuse(options?.ResponseFormat is not (null or ChatResponseFormatText), nameof(ChatOptions.ResponseFormat));
        Refuse(options?.Reasoning is not null, nameof(ChatOptions.Reasoning));
        Refuse(options?.ConversationId is not null, nameof(ChatOptions.ConversationId));
        Refuse(options?.ModelId is string other && other != modelId, $"{nameof(ChatOptions.ModelId)} = {options?.ModelId}");
        int maxTokens = options?.MaxOutputTokens ?? defaultMaxTokens;
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxTokens, nameof(ChatOptions.MaxOutputTokens));
        return new ChatRequest(
            ReadTurns(messages, options?.Instructions),
            new SamplingOptions
            {
                Temperature = options?.Temperature ?? 0,
                TopP = options?.TopP ?? 1,
                TopK = options?.TopK ?? 0,
                FrequencyPenalty = options?.FrequencyPenalty ?? 0,
                PresencePenalty = options?.PresencePenalty ?? 0,
                Seed = options?.Seed is long seed ? unchecked((int)seed) : Random.Shared.Next(),
            },
            maxTokens,
            [.. options?.StopSequences ?? []]);

        static void Refuse(bool isAsked, string what)
        {
            if (isAsked)
            {
                throw new NotSupportedException($"{what} is not supported.");
            }
        }
    }

    // All that the system says first is one turn.
    private static List<ChatTurn> ReadTurns(IEnumerable<ChatMessage> messages, string? instructions)
    {
        List<ChatTurn> turns = string.IsNullOrEmpty(instructions) ? [] : [new ChatTurn(ChatSpeaker.System, instructions)];
        foreach (ChatMessage message in messages)
        {
            ChatTurn turn = new(SpeakerOf(message.Role), TextOf(message));
            if (turn.Speaker == ChatSpeaker.System && turns is [{ Speaker: ChatSpeaker.System } system])
            {
                turns[0] = system with { Text = $"{system.Text}\n\n{turn.Text}" };
            }
            else
            {
                turns.Add(turn);
            }
        }

        return turns.Count > 0 ? turns : throw new ArgumentException("Expected at least one message, but got none.", nameof(messages));
    }

    private static ChatSpeaker SpeakerOf(ChatRole role) =>
        role == ChatRole.System ? ChatSpeaker.System
        : role == ChatRole.User ? ChatSpeaker.User
        : role == ChatRole.Assistant ? ChatSpeaker.Assistant
        : throw new NotSupportedException($"A message of role '{role}' is not supported; expected system, user or assistant.");

    private static string TextOf(ChatMessage message)
    {
        foreach (AIContent content in message.Contents)
        {
            if (content is not TextContent)
            {
                throw new NotSupportedException($"Content of type {content.GetType().Name} is not supported; expected text.");
            }
        }

        return message.Text;
    }
}

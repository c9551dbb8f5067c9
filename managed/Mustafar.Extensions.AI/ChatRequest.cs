using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using Microsoft.Extensions.AI;
using Mustafar.Models.Chat;

namespace Mustafar.Extensions.AI;

/// <summary>Defaults for what a request doesn't set.</summary>
/// <param name="ModelId">Name of the model; none if null.</param>
/// <param name="Sampling">How tokens are chosen.</param>
/// <param name="MaxTokens">Maximum number of tokens to generate.</param>
internal sealed record ChatRequestDefaults(string? ModelId, SamplingParameters Sampling, int MaxTokens);

/// <summary>A caller's request in the model's terms. What the model can't do is refused, never ignored.</summary>
/// <param name="Turns">The chat.</param>
/// <param name="TemplateVariables">Further variables for the chat template.</param>
/// <param name="Sampling">How tokens are chosen.</param>
/// <param name="MaxTokens">Maximum number of tokens to generate.</param>
/// <param name="StopSequences">Texts that end the reply.</param>
internal sealed record ChatRequest(
    IReadOnlyList<ChatTurn> Turns,
    IReadOnlyDictionary<string, object?> TemplateVariables,
    SamplingParameters Sampling,
    int MaxTokens,
    IReadOnlyList<string> StopSequences)
{
    private const string TemplateVariablesKey = "chat_template_kwargs";

    /// <summary>Reads messages and options.</summary>
    /// <param name="messages">The chat.</param>
    /// <param name="options">The options; none if null.</param>
    /// <param name="defaults">Defaults for what the options don't set.</param>
    /// <exception cref="NotSupportedException">A message or an option needs what the model can't do.</exception>
    /// <exception cref="ArgumentException">A value is out of range.</exception>
    public static ChatRequest Read(IEnumerable<ChatMessage> messages, ChatOptions? options, ChatRequestDefaults defaults)
    {
        options ??= new ChatOptions();
        RefuseUnsupported(options, defaults.ModelId);
        int maxTokens = options.MaxOutputTokens ?? defaults.MaxTokens;
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxTokens, nameof(ChatOptions.MaxOutputTokens));
        if (options.StopSequences?.Any(string.IsNullOrEmpty) ?? false)
        {
            throw new ArgumentException($"{nameof(ChatOptions.StopSequences)}: expected non-empty strings.", nameof(options));
        }

        return new ChatRequest(
            ChatTurns.Read(messages, options.Instructions, options.ResponseFormat),
            ReadTemplateVariables(options),
            defaults.Sampling with
            {
                Temperature = options.Temperature ?? defaults.Sampling.Temperature,
                TopP = options.TopP ?? defaults.Sampling.TopP,
                TopK = options.TopK ?? defaults.Sampling.TopK,
                FrequencyPenalty = options.FrequencyPenalty ?? 0,
                PresencePenalty = options.PresencePenalty ?? 0,
                Seed = unchecked((ulong)(options.Seed ?? Random.Shared.NextInt64())),
            },
            maxTokens,
            [.. options.StopSequences ?? []]);
    }

    private static void RefuseUnsupported(ChatOptions options, string? modelId)
    {
        Refuse(options.Tools is { Count: > 0 }, "Tools are");
        Refuse(options.ToolMode is RequiredChatToolMode, $"A required {nameof(ChatOptions.ToolMode)} is");
        Refuse(options.Reasoning is not null, $"{nameof(ChatOptions.Reasoning)} is");
        Refuse(options.ConversationId is not null, $"{nameof(ChatOptions.ConversationId)} is");
        Refuse(
            !string.IsNullOrEmpty(options.ModelId) && options.ModelId != modelId,
            $"{nameof(ChatOptions.ModelId)} '{options.ModelId}' is",
            modelId is null ? "" : $"; this client has '{modelId}'");
        foreach (string key in options.AdditionalProperties?.Keys ?? [])
        {
            Refuse(
                key != TemplateVariablesKey,
                $"{nameof(ChatOptions.AdditionalProperties)}[\"{key}\"] is",
                $"; expected \"{TemplateVariablesKey}\", with variables for the chat template");
        }

        static void Refuse(bool isAsked, string what, string hint = "")
        {
            if (isAsked)
            {
                throw new NotSupportedException($"{what} not supported{hint}.");
            }
        }
    }

    private static Dictionary<string, object?> ReadTemplateVariables(ChatOptions options)
    {
        object? value = null;
        if (options.AdditionalProperties?.TryGetValue(TemplateVariablesKey, out value) != true || value is null)
        {
            return [];
        }

        try
        {
            // Whatever type holds them: a dictionary, JSON or, unless compiled ahead of time, an object with properties.
            JsonTypeInfo type = AIJsonUtilities.DefaultOptions.GetTypeInfo(value.GetType());
            return Models.Chat.TemplateVariables.FromJson(JsonSerializer.SerializeToElement(value, type));
        }
        catch (Exception exception) when (exception is ArgumentException or NotSupportedException or JsonException or InvalidOperationException)
        {
            string message = exception.Message.Split(" (Parameter ")[0];
            throw new ArgumentException(
                $"{nameof(ChatOptions.AdditionalProperties)}[\"{TemplateVariablesKey}\"]: {message}", nameof(options), exception);
        }
    }
}

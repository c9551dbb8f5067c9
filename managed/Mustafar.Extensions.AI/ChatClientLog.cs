using Microsoft.Extensions.Logging;
using Mustafar.Models.Chat;

namespace Mustafar.Extensions.AI;

/// <summary>The log messages of a <see cref="LlamaChatClient"/>. None contains what is said in a chat.</summary>
internal static partial class ChatClientLog
{
    [LoggerMessage(1, LogLevel.Information, "Loaded {Directory} in {Seconds:F1} s: {DType} on {Device}, {Cache} caches.")]
    internal static partial void Loaded(ILogger logger, string directory, double seconds, string dtype, string device, string cache);

    [LoggerMessage(2, LogLevel.Debug, "Request {Id}: a prompt of {PromptTokens} tokens, at most {MaxTokens} to generate.")]
    internal static partial void Started(ILogger logger, string id, int promptTokens, int maxTokens);

    [LoggerMessage(
        3,
        LogLevel.Information,
        "Request {Id}: read {NewTokens} tokens of the prompt, reused {CachedTokens}, generated {ReplyTokens} in {Seconds:F2} s ({End}); the cache has {ReservedBytes} bytes reserved, {UsedBytes} in use.")]
    internal static partial void Completed(
        ILogger logger, string id, int newTokens, int cachedTokens, int replyTokens, double seconds, ReplyEnd end, long reservedBytes, long usedBytes);

    [LoggerMessage(4, LogLevel.Information, "Request {Id}: cancelled.")]
    internal static partial void Cancelled(ILogger logger, string id);

    [LoggerMessage(5, LogLevel.Warning, "Request {Id}: refused.")]
    internal static partial void Refused(ILogger logger, Exception exception, string id);

    [LoggerMessage(6, LogLevel.Error, "Request {Id}: failed.")]
    internal static partial void Failed(ILogger logger, Exception exception, string id);
}

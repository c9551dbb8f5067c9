using System.Globalization;
using System.Text;
using Mustafar.Models.Chat;
using Mustafar.Models.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Reads turns and writes replies until the input ends. An error in a turn is reported, and the chat continues.</summary>
/// <param name="conversation">The chat so far.</param>
/// <param name="opening">Turns before the first one of a new chat.</param>
/// <param name="sampling">How tokens are chosen; each reply has its own seed.</param>
/// <param name="maxTokens">Maximum number of tokens of a reply.</param>
/// <param name="context">Context length of the model.</param>
internal sealed class ChatLoop(Conversation conversation, ChatTurn[] opening, SamplingParameters sampling, int maxTokens, int context)
{
    /// <summary>The line that starts a new chat.</summary>
    public const string Reset = "/reset";

    /// <summary>The line that ends the program.</summary>
    public const string Exit = "/exit";

    private readonly List<ChatExchange> _exchanges = [];

    /// <summary>What was said, errors included.</summary>
    public IReadOnlyList<ChatExchange> Exchanges => _exchanges;

    /// <summary>Chats until the input ends, or the user ends the program.</summary>
    public void Run(CommandInput input, ConsoleOutput output)
    {
        while (Ask(input, output) is string line && line != Exit)
        {
            if (line == Reset)
            {
                conversation.Reset();
                output.WriteLine("--- a new chat");
            }
            else if (line.Length > 0)
            {
                Reply(line, output);
            }
        }
    }

    // Null when there is nothing left to reply to.
    private static string? Ask(CommandInput input, ConsoleOutput output)
    {
        if (input.ShowsPrompts)
        {
            output.Write("> ");
        }

        try
        {
            if (!output.Interrupted.IsCancellationRequested && input.ReadLine(output.Interrupted) is string line)
            {
                return line;
            }
        }
        catch (OperationCanceledException)
        {
        }

        output.EndLine();
        return null;
    }

    private void Reply(string line, ConsoleOutput output)
    {
        ChatTurn user = new(ChatRoles.User, line);
        Sampler sampler = new(sampling with { Seed = unchecked(sampling.Seed + (ulong)_exchanges.Count) });
        StringBuilder reply = new();
        int cachedBefore = conversation.CachedTokens;
        string? error = null;
        try
        {
            ChatTurn[] turns = conversation.Turns.Count == 0 ? [.. opening, user] : [user];
            foreach (string part in conversation.Reply(turns, sampler, maxTokens, cancellationToken: output.Interrupted))
            {
                reply.Append(part);
                output.Write(part);
            }
        }
        catch (OperationCanceledException)
        {
            // What was said until then is kept; no further line is read.
        }
        catch (Exception exception)
        {
            // The boundary of a turn: whatever went wrong in it, what was said before is kept.
            error = ErrorMessage.Of(exception);
        }

        output.EndLine();
        if (error is null)
        {
            ReplyUsage usage = conversation.LastUsage;
            _exchanges.Add(new ChatExchange(line, reply.ToString(), usage.CachedTokens, usage.NewTokens, usage.ReplyTokens, Reason(usage.End)));
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"--- read {usage.NewTokens} tokens after {usage.CachedTokens} cached, wrote {usage.ReplyTokens}; cache ")
                + MemoryReport.Of(conversation.CachedTokens, conversation.Memory));
        }
        else
        {
            _exchanges.Add(new ChatExchange(line, reply.ToString(), cachedBefore, 0, 0, "error", error));
            output.Message(string.Create(
                CultureInfo.InvariantCulture,
                $"error: turn {_exchanges.Count}: {error} The chat continues with {conversation.CachedTokens} of {context} tokens of context in use; ")
                + $"a shorter line may fit, and {Reset} starts a new chat.");
        }
    }

    private static string Reason(ReplyEnd end) => end switch
    {
        ReplyEnd.Stop => "stop",
        ReplyEnd.Length => "length",
        _ => "interrupted",
    };
}

/// <summary>A line of the user and its outcome.</summary>
/// <param name="User">The line.</param>
/// <param name="Assistant">The reply, or as much of it as there is.</param>
/// <param name="CachedTokens">Tokens that were in the cache before.</param>
/// <param name="NewTokens">Tokens that were read for it.</param>
/// <param name="ReplyTokens">Tokens that were generated.</param>
/// <param name="FinishReason">stop, length, interrupted or error.</param>
/// <param name="Error">What went wrong, if something did.</param>
internal sealed record ChatExchange(
    string User, string Assistant, int CachedTokens, int NewTokens, int ReplyTokens, string FinishReason, string? Error = null);

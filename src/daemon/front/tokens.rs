//! What is asked of tokens.

use tracing::info;

use super::{Front, KEY_MAX, Notices, Refusal, blocking, done, finish, refusal, tell, until};
use crate::daemon::clock::Moment;
use crate::daemon::tokens::{self, Wanted};
use crate::ids::{ActionName, ProgramName};
use crate::policy::{self, Peer};
use crate::protocol::message::{ErrorCode, Reply, Token};

impl Front {
    pub(super) async fn add_token(
        &self,
        peer: &Peer,
        programs: &[String],
        actions: &[String],
        (name, seconds): (String, Option<f64>),
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let bad = |message: &str| refusal(ErrorCode::BadInput, message);
        if peer.scope.is_some() {
            let message = "a token makes no tokens";
            return Err(refusal(ErrorCode::Refused, message));
        }
        if programs.is_empty() || actions.is_empty() {
            return Err(bad("a token is for at least one program and one action"));
        }
        if name.len() > KEY_MAX || name.chars().any(char::is_control) {
            return Err(bad("the name is too long, or has control characters"));
        }
        let (mut names, mut allowed) = (Vec::new(), Vec::new());
        for action in actions {
            let action =
                ActionName::new(action).map_err(|_| bad(&format!("{action:?} is no action")))?;
            allowed.push(action);
        }
        for program in programs {
            for action in &allowed {
                // What one may not do oneself, one cannot let others do.
                names.push(self.authorize(peer, program, action)?.name().clone());
            }
        }
        names.dedup();
        let until = until(Moment::now(), seconds)?;
        let by = self.names.by(peer).await;
        let wanted = Wanted {
            name,
            owner: (peer.raw_uid, by.user.clone()),
            programs: names,
            actions: allowed,
            until,
        };
        let tokens = self.tokens.clone();
        let (id, secret) = match blocking(move || tokens.add(wanted)).await {
            Some(Ok(made)) => made,
            Some(Err(e)) => return Err(refusal(ErrorCode::Failed, format!("no token: {e}"))),
            None => return Err(refusal(ErrorCode::Failed, "no token was made")),
        };
        info!(
            uid = peer.raw_uid,
            pid = peer.pid,
            "token {id} was made by {}",
            by.user
        );
        let message = format!("that is token {id}; nobody will be shown it again");
        done(notices, Some(message), Some(format!("{secret}\n")), 0);
        Ok(())
    }

    pub(super) fn list_tokens(&self, peer: &Peer, notices: &Notices) {
        let admin = policy::is_admin(self.in_force().owner, peer);
        let all = self.tokens.list().into_iter();
        for token in all.filter(|t| admin || (peer.scope.is_none() && t.uid == peer.raw_uid)) {
            let at = |nanos| Moment::from_nanos(nanos).rfc3339();
            let texts = |names: &[ProgramName]| names.iter().map(ToString::to_string).collect();
            tell(
                notices,
                Reply::Token(Token {
                    id: token.id,
                    name: token.name.clone(),
                    user: token.user.clone(),
                    programs: texts(&token.programs),
                    actions: token.actions.iter().map(ToString::to_string).collect(),
                    since: at(token.since),
                    until: token.until.map(at),
                }),
            );
        }
        finish(notices, None);
    }

    pub(super) async fn remove_token(
        &self,
        peer: &Peer,
        id: u64,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let admin = policy::is_admin(self.in_force().owner, peer);
        let (tokens, uid, free) = (self.tokens.clone(), peer.raw_uid, peer.scope.is_none());
        let may = move |token: &tokens::Token| admin || (free && token.uid == uid);
        match blocking(move || tokens.remove(id, may)).await {
            Some(Ok(Some(token))) => {
                info!(
                    uid,
                    pid = peer.pid,
                    "token {id} of {} was removed",
                    token.user
                );
                finish(notices, Some(format!("token {id} counts no more")));
                Ok(())
            }
            Some(Ok(None)) => Err(refusal(
                ErrorCode::Refused,
                format!("token {id}: no such token, or not one of yours"),
            )),
            _ => Err(refusal(ErrorCode::Failed, "the token could not be removed")),
        }
    }
}
